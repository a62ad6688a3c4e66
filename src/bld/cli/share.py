"""Share a trained run on the Hugging Face hub, with a page that shows and describes it."""

from __future__ import annotations

import argparse
from pathlib import Path

from bld.cli.common import add_device_arguments, load_pipeline, precision, say
from bld.cli.outputs import refuse_foreign_folder
from bld.errors import SettingError
from bld.io.hub import MESSAGE, refuse_name

HELP = "put a trained run on the Hugging Face hub"
WRITTEN = [
    "README.md", "model_index.json", "tokenizer", "prior", "guide", "diffusion", "text_encoder", "samples.png",
    "steps.png",
]  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, its name on the hub, who may see it, and the licence."""
    parser.add_argument("run_folder", metavar="RUN", help="a run or a saved pipeline")
    parser.add_argument("repo_id", metavar="REPO_ID", help="its name on the hub, such as you/flowers")
    parser.add_argument(
        "--private", action="store_true", help="only you can see it: a repository that is public already is refused"
    )
    parser.add_argument("--license", "--licence", default="other", metavar="NAME", help="of the weights: cc-by-4.0, …")
    parser.add_argument("--message", default=MESSAGE, help="of the commit")
    parser.add_argument("--revision", metavar="BRANCH", help="a branch other than main, made if need be")
    parser.add_argument("--create-pr", action="store_true", help="propose it to the repository's owner")
    parser.add_argument("--token", help="of the hub (default: that of `hf auth login`, or HF_TOKEN)")
    parser.add_argument("--dry-run", type=Path, metavar="FOLDER", help="write into a folder what would be shared")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the card, upload, say where it is."""
    from bld.io.files import folder_written_aside
    from bld.pipeline.card import loading

    refuse_name(args.repo_id)
    pipe = load_pipeline(args)
    with precision(args, pipe.device):
        if args.dry_run is not None:
            refuse_foreign_folder(args.dry_run, WRITTEN)
            _refuse_other_model(args.dry_run, pipe.fingerprint())
            with folder_written_aside(args.dry_run) as aside:
                pipe.save_pretrained(aside)
                pipe.save_card(aside, args.repo_id, args.license, args.revision)
            say(
                f"Written: {args.dry_run}; look at README.md, and leave out --dry-run to share it"
                + (", when the hub is asked whether it knows the licence." if args.license != "other" else ".")
            )
            return
        address = pipe.push_to_hub(
            args.repo_id,
            private=args.private,
            token=args.token,
            commit_message=args.message,
            revision=args.revision,
            create_pr=args.create_pr,
            license=args.license,
        )
    say(f"Shared: {address}; load it with {loading(args.repo_id, address.revision)}.")


def _refuse_other_model(folder: Path, fingerprint: str) -> None:
    """Refuse a folder that holds a model of other weights."""
    from bld.pipeline import BinaryLatentDiffusionPipeline

    is_model = (folder / "model_index.json").exists()
    if is_model and BinaryLatentDiffusionPipeline.from_pretrained(folder).fingerprint() != fingerprint:
        raise SettingError(f"{folder} holds another model, which would be replaced: choose another folder.")
