"""`kvtools rl gbpo`: a recommender and interactions in, the recommender moved towards a reward by OneRec-V2's GBPO out."""

from kvtools.commands.rl_ecpo import COMMON, EXIT_CODES, GROUPS, policy_command

__all__ = ["COMMON", "EXAMPLES", "EXIT_CODES", "GROUPS", "SEE_ALSO", "main"]

EXAMPLES = [
    "kvtools rl gbpo --model shop.safetensors clicks.csv --reward hit --group 8 --steps 4 -o better.safetensors",
    "kvtools convert clicks.csv | kvtools rl gbpo --model shop.safetensors - --reward hit --steps 2 --group 8 | kvtools info -",
]
SEE_ALSO = ("kvtools rl ecpo", "kvtools rl pscore", "kvtools pretrain onerec", "kvtools recgen", "kvtools plot")

main = policy_command(
    "gbpo", "Move a recommender towards a reward by GBPO, whose gradients are bounded, as the OneRec-V2 report has it."
)
