"""What each flag means, for a reader who has the page alone. Its file in docs/flags says more."""

EXPLAINED = {
    "adaptive-weaker": (
        "An attack that knows the defense should do at least as much damage as one that does not. This one does "
        "less, so it is badly made or tuned, and does not show what the defense holds."
    ),
    "clients-lost": (
        "The defense rejects benign clients although nobody attacks. The model then never sees their data, while "
        "accuracy over the whole test set may hardly move."
    ),
    "equal-to-mean": (
        "The defense is no better than no defense under this attack: it does not see the attack, or what it gains "
        "by rejecting attackers it loses by rejecting others."
    ),
    "harmless-attack": (
        "The attack harms nobody here, not even without a defense. What a defense does against it shows nothing; "
        "a larger attack is needed."
    ),
    "one-seed": (
        "A single seed does not show how much of a difference is chance. Take three seeds or more, and conclude "
        "nothing from differences below their spread."
    ),
    "root-misfit": (
        "The server's own clean data (root data) differ from what the clients hold, so the defense can tell less "
        "and protects less than it does with well fitting data."
    ),
    "truth-unknown": (
        "The records do not say who is malicious, so nobody can count mistakes: read who was rejected and why, "
        "instead of rates."
    ),
    "undecided-rates": (
        "The rates are those of a few rounds, since the defense could not decide in the others and accepted "
        "everybody in them."
    ),
}
