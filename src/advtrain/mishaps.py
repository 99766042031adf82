"""What befalls a machine, in a sentence: full memory, full disks, files not to be written."""

from concurrent.futures.process import BrokenProcessPool

from advtrain.files import FULL
from advtrain.portions import TooLarge, out_of_memory


def told(error: Exception) -> str | None:
    """What happened and what helps; None for an error that is of another kind."""
    if isinstance(error, TooLarge):
        return f"{error} What was saved before is whole."
    if out_of_memory(error):
        reason = next(iter(str(error).strip().splitlines()), "")[:160].rstrip(".")
        return (
            f"memory ran out{f' ({reason})' if reason else ''}. What was saved before is whole. An "
            "evaluation needs less with a smaller eval.batch_size or eval.certify.batch_size, a "
            "training with a smaller batch_size (auto finds one), either with precision=bf16."
        )
    if isinstance(error, BrokenProcessPool):
        return (
            "a process that this command had started was killed, perhaps because memory ran out. "
            "What was saved before is whole. dataset.workers=1 decodes images in the command's own."
        )
    if not isinstance(error, OSError) or error.errno is None:
        return None
    where = error.filename if error.filename is not None else "a file of the run"
    if error.errno in FULL:
        return (
            f"{where} cannot be written ({error.strerror}). What was saved before is whole: make "
            "room for the rest."
        )
    return f"{where}: {error.strerror}."
