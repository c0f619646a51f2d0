// Draws the charts of a page whose specifications are its data.
for (const [name, spec] of Object.entries(D.specs)) chart(name, () => structuredClone(spec));
