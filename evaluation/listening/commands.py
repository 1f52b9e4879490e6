"""`python -m evaluation listen build | serve | export | import | review | analyse | ratings`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from audioldm2_pl.errors import UserError

from .store import Answers

DESCRIPTION = (
    "Listening tests: build makes the raters' pages, serve shows them and saves the answers, analyse gives each "
    "system's mean with its interval; export, import and review exchange CSV with Mechanical Turk and Prolific."
)


def add_listen_parser(commands: argparse._SubParsersAction) -> None:
    listen = commands.add_parser("listen", help="listening tests: build, serve, analyse", description=DESCRIPTION)
    actions = listen.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_build(actions)
    serve = add_action(actions, "serve", "show the pages and save the answers, until interrupted", run_serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8765, help="0 takes a free one (default: %(default)s)")

    export = add_action(actions, "export", "write what a platform asks for to publish the test", run_export)
    add_platform(export)
    export.add_argument("--url", required=True, help="where raters reach the pages, https://…")
    export.add_argument("--output", type=Path, help="folder for the files (default: the test's)")

    take = add_action(actions, "import", "take in a platform's results file", run_import_results)
    add_platform(take)
    take.add_argument("results", type=Path, help="the CSV as downloaded from the platform")

    review = add_action(actions, "review", "decide whose work is approved", run_review)
    add_platform(review)
    review.add_argument("results", type=Path, help="the CSV as downloaded from the platform")
    review.add_argument("--output", type=Path, required=True, help="CSV with the decisions")

    analyse = add_action(actions, "analyse", "mean and 95 %% interval of each system", run_analyse)
    analyse.add_argument("--output", type=Path, help="JSON file for the results")

    ratings = add_action(actions, "ratings", "write each answer that counts, for `trust`", run_ratings)
    ratings.add_argument("--output", type=Path, required=True, help="CSV: file, system, question, rating, rater")


def add_build(actions: argparse._SubParsersAction) -> None:
    build = add_action(actions, "build", "make test.json and a page for each batch", run_build)
    build.add_argument("--reference", type=Path, required=True, help="folder of the real recordings")
    build.add_argument(
        "--system", action="append", required=True, metavar="NAME=FOLDER", help="same file names; give it once a system"
    )
    build.add_argument("--captions", type=Path, help="CSV with columns filename and caption; REL needs it")
    build.add_argument("--questions", nargs="+", default=["OVL", "REL"], metavar="Q", help="OVL REL MOS (OVL REL)")
    build.add_argument("--clips", type=int, help="draw that many clips (default: all)")
    build.add_argument("--clips-per-batch", type=int, default=5, help="each comes from every system (%(default)s)")
    build.add_argument("--seed", type=int, default=0, help="of the draw and of the order (%(default)s)")
    build.add_argument("--completion-url", default="", help="where raters are sent in the end, e.g. Prolific's")


def add_action(
    actions: argparse._SubParsersAction, name: str, text: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text)
    parser.add_argument("test", type=Path, help="the listening test's folder")
    parser.set_defaults(run=run)
    return parser


def add_platform(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--platform", choices=["mturk", "prolific"], required=True)


def run_build(options: argparse.Namespace) -> None:
    from .build import BuildOptions, build_test

    systems: dict[str, Path] = {}
    for pair in options.system:
        name, mark, folder = pair.partition("=")
        if not mark or not folder:
            raise UserError(f"--system {pair}: has to be NAME=FOLDER")
        if name in systems:
            raise UserError(f"--system {name}=…: this name is given twice")
        systems[name] = Path(folder)
    test = build_test(
        options.test,
        options.reference,
        systems,
        options.captions,
        BuildOptions(
            tuple(options.questions), options.clips_per_batch, options.clips, options.seed, options.completion_url
        ),
    )
    print(f"{options.test}: {len(test.batches)} batches of up to {max(len(b.items) for b in test.batches)} clips")


def run_serve(options: argparse.Namespace) -> None:
    from .server import serve

    serve(options.test, options.host, options.port)


def run_export(options: argparse.Namespace) -> None:
    from .batches import load_test
    from .exchange import MIN_APPROVAL_RATE, MIN_APPROVALS, MIN_RATERS, export_mturk, export_prolific

    export = export_mturk if options.platform == "mturk" else export_prolific
    for path in export(load_test(options.test), options.url, options.output or options.test):
        print(path)
    print(
        f"ask the platform for {MIN_RATERS} raters a batch with an approval rate of at least "
        f"{100 * MIN_APPROVAL_RATE:.0f} % and at least {MIN_APPROVALS} approvals"
    )


def run_import_results(options: argparse.Namespace) -> None:
    from .exchange import import_mturk, import_prolific

    take, kind = (import_mturk, "new assignments") if options.platform == "mturk" else (import_prolific, "submissions")
    print(f"{take(open_answers(options.test, new=True), options.results)} {kind}")


def run_review(options: argparse.Namespace) -> None:
    from .analysis import payment_decisions
    from .exchange import review_mturk, review_prolific

    answers = open_answers(options.test)
    review = review_mturk if options.platform == "mturk" else review_prolific
    counts = review(options.results, payment_decisions(answers.test, answers.answers()), options.output)
    print(f"{options.output}: {counts[0]} approved, {counts[1]} rejected")


def run_analyse(options: argparse.Namespace) -> None:
    from .analysis import analyse, results_table

    answers = open_answers(options.test)
    results = analyse(answers.test, answers.answers(), answers.raters())
    if not results["raters"]["counted"]:
        raise UserError(f"{options.test}: no rater's answers count yet; collect some, then analyse again")
    print(results_table(results))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")


def run_ratings(options: argparse.Namespace) -> None:
    from .analysis import rating_rows
    from .exchange import write_csv

    answers = open_answers(options.test)
    rows = rating_rows(answers.test, answers.answers(), answers.raters())
    if not rows:
        raise UserError(f"{options.test}: no rater's answers count yet; collect some, then write them again")
    write_csv(options.output, list(rows[0]), rows)
    print(f"{options.output}: {len(rows)} ratings")


def open_answers(folder: Path, new: bool = False) -> Answers:
    """The answers to the test; UserError where there are none yet, unless a `new` file is wanted."""
    from .batches import load_test

    test, path = load_test(folder), folder / "answers.sqlite"
    if not new and not path.exists():
        raise UserError(f"{path}: no answers yet; serve the test, or import a platform's results")
    return Answers(path, test)
