"""``python -m edgesam_jax.card CHECKPOINT``: print a model's card, from what its metadata records.

CHECKPOINT is anything that ``edgesam_jax.load_model`` reads. Folders that ``train`` and ``finetune`` wrote have the
same text in ``MODEL_CARD.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from edgesam_jax.cli.command import run_command
from edgesam_jax.cli.flags import Parser


def run(argv: Sequence[str] | None) -> int:
    """Print the card.

    Raises:
      UsageError: the checkpoint can't be read.
    """
    parser = Parser(prog="python -m edgesam_jax.card", description="Print a model's card.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="anything edgesam_jax.load_model reads")
    parser.add_argument("--json", action="store_true", help="print the metadata that the card is made from")
    args = parser.parse_args(argv)
    import json
    from pathlib import Path

    from edgesam_jax.checkpoints import provenance
    from edgesam_jax.checkpoints.load import load_model

    model = load_model(args.checkpoint)
    text = json.dumps(model.metadata, indent=1) if args.json else provenance.card(model, Path(args.checkpoint).name)
    print(text.rstrip())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
