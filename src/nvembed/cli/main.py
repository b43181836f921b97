"""The program ``nvembed``: its commands and its exit codes.

0 success; 1 an error that a message explains, or a reader that went away (``| head``); 2 a command
line that cannot be understood; 3 leaks found (``leaks``); 130 Ctrl-C; 143 SIGTERM.
"""

import errno
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nvembed import __version__
from nvembed.cli.signals import Interrupts
from nvembed.errors import NvembedError

if TYPE_CHECKING:
    from cyclopts import App, CycloptsError
    from rich.text import Text

# A command is the function of its name in the module of its name. The list of commands shows these lines
# without importing the commands; each is also the first line of the command's own help.
COMMANDS = {
    "encode": "Embed the texts of a file.",
    "embed": "Embed a corpus into a folder of Parquet files. Run the same command again to resume.",
    "search": "Search a folder, a file, an embedded corpus or an index by meaning.",
    "index": "Index a folder, a file or an embedded corpus for search by meaning and by words.",
    "ask": "Answer a question from an index, with numbered citations.",
    "chat": "Answer questions about an index in a conversation, with numbered citations.",
    "cluster": "Group a corpus by meaning, name the groups, and draw a map.",
    "classify": "Fit a classifier on labelled texts, predict with it, or classify without examples.",
    "serve": "Serve a model: the embedding APIs of OpenAI, NVIDIA NIM, Cohere and TEI.",
    "mcp": "Serve indexes to agents by the Model Context Protocol, on standard input and output.",
    "init": "Make an untrained NV-Embed checkpoint from a causal language model.",
    "check": "Check that a model, or a folder that nvembed wrote, is complete and undamaged.",
    "evaluate": "Score models on evaluation tasks.",
    "compare": "Compare models on every task, with paired tests over queries.",
    "choose": "Measure several models on your own documents and questions.",
    "mine": "Make training files: choose examples, leave out leaks, mine hard negatives.",
    "leaks": "Find evaluation texts in training data, equal or nearly equal.",
    "teach": "Compute the vectors of a recipe's teachers once, for training.",
    "train": "Train one stage from a recipe.",
    "merge": "Merge a trained adapter into its checkpoint.",
    "average": "Average states of training into one.",
    "compress": "Make a model smaller: fewer bits, tokens, layers or dimensions.",
    "ladder": "Measure a model in every precision, and smaller forms of it.",
    "export": "Write a model without its backbone, or in the layout of sentence-transformers.",
    "demo": "Embed a labelled corpus with a small model, answer its questions and score the answers.",
}


def app_for(argv: Sequence[str]) -> "App":
    """Return the app. Only a command that ``argv`` names is imported, for its own help."""
    from cyclopts import App, Parameter

    from nvembed.cli.screen import messages, results

    app = App(
        name="nvembed",
        help="Text embeddings from language models: encode, search, serve, train, evaluate.\n\n"
        "`nvembed COMMAND --help` shows the options of a command, with examples.",
        version=__version__,
        console=results(),
        error_console=messages(),
        error_formatter=_usage_error,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
        default_parameter=Parameter(negative_iterable=(), show_default=_default_text),  # no --empty-tasks
    )
    for name, summary in COMMANDS.items():
        path = f"nvembed.cli.{name}:{name}"
        app.command(path, name=name, help=None if name in argv else summary)
    return app


def _default_text(value: object) -> str | None:
    """Return how help shows a default; None for an empty one."""
    return None if value is None or value is False or value in ("", ()) else str(value)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    interrupts = Interrupts()
    try:
        interrupts.install()
        sys.exit(_run(sys.argv[1:] if argv is None else argv))
    except Exception as error:
        if interrupts.number:  # a library made another exception of the signal's
            sys.exit(128 + interrupts.number)
        if isinstance(error, OSError) and not isinstance(error, NvembedError):
            _system_error(error)
        if not isinstance(error, NvembedError):
            raise
        _say_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        from nvembed.cli.screen import say

        say("interrupted")
        sys.exit(130)
    finally:
        interrupts.end()


def _run(argv: Sequence[str]) -> int:
    """Run a command and return its exit code. What takes long to import is imported here."""
    from nvembed.cli.screen import open_streams, warn

    open_streams()
    warnings.showwarning = lambda message, *_where: warn(str(message))
    argv = [_expand_home(word) for word in argv]
    if unknown := _unknown_command(argv):
        _say_error(f"{unknown}\nsee  nvembed --help")
        return 2
    code = app_for(argv)(argv)
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _say_error(message: str) -> None:
    from nvembed.cli.screen import say

    say(message, label="error: ", style="bold red")


def _system_error(error: OSError) -> NoReturn:
    """Exit after an error of the system, such as a name that is too long, or a full disk."""
    if not isinstance(error, BrokenPipeError):  # the reader of the pipe has closed it
        where = f"{error.filename}: " if error.filename else ""
        closed = error.errno == errno.EBADF  # see open_streams
        reason = "standard input or output is closed" if closed else error.strerror or str(error)
        _say_error(f"{where}{reason}")
    # Otherwise Python would report the error once more when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(1)


def _expand_home(word: str) -> str:
    """Return an argument with a leading ``~/`` expanded, also that of ``--option=~/path``."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{Path(value).expanduser()}" if value.startswith("~/") else word


def _usage_error(error: "CycloptsError") -> "Text":
    from rich.text import Text

    command = " ".join(["nvembed", *(error.command_chain or ())])
    faults = getattr(error.__cause__, "errors", None)  # pydantic's, of an option that one of its models takes
    text = "\n".join(map(_option_fault, faults())) if faults else str(error)
    return Text.assemble(("error: ", "bold red"), f"{text}\nsee  {command} --help")


def _option_fault(fault: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in fault["loc"]).replace("_", "-")
    return f"--{name}: {fault['msg']}, got {fault['input']!r:.80}"


def _unknown_command(argv: Sequence[str]) -> str | None:
    """Return a message for a command that does not exist; cyclopts would import every command for it."""
    name = argv[0] if argv else "-"
    if name.startswith("-") or name in COMMANDS:
        return None
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, n=1)
    suggestion = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(COMMANDS))}"
    return f"unknown command {name!r}: {suggestion}"
