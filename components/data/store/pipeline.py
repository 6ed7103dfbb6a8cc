"""The data stages of dvc.yaml for one domain: one DVC process, followed from stage to stage.

    with closing(Stages(workspace, name, version.md5, code)) as stages:
        stages.run("manifest")  # returns when that stage has ended; DVC continues with the next one meanwhile
        stages.run("features")

The stages are forced, because DVC cannot see changes of Tessera's own code. They do not run at all if code and
everything else are proven to be unchanged (see `proofs`).
"""

from collections.abc import Iterator

from components.data.store import proofs, versioning
from components.workspace import Workspace


class Stages:
    """The stages that have ended and those that are left. A failed stage raises its own error and can be run again."""

    def __init__(self, workspace: Workspace, name: str, md5: str, code: str) -> None:
        self.workspace, self.name, self.md5, self.code = workspace, name, md5, code
        self.fresh = proofs.are_fresh(workspace, name, md5, code)
        self.waiting = [] if self.fresh else list(proofs.STAGES)
        self._going: Iterator[str] | None = None

    def begin(self) -> Iterator[str]:
        """Start DVC if it is not running yet; it continues by itself."""
        if self._going is None:
            self._going = self._start()
            next(self._going)
        return self._going

    def run(self, stage: str) -> None:
        """Wait until this stage, and all stages before it, have ended. Raises the error of a stage that failed."""
        while stage in self.waiting:
            try:
                ended = next(self.begin())
            except BaseException:
                self._going = None
                raise
            self.waiting.remove(ended)
            if not self.waiting:
                proofs.remember_stages(self.workspace, self.name, self.code)

    def close(self) -> None:
        """End DVC if it is still running."""
        if self._going is not None:
            self._going.close()  # type: ignore[attr-defined]

    def _start(self) -> Iterator[str]:
        """Run DVC: yields once when it has started, then once per stage when the stage has ended.

        The domain is locked meanwhile, so that no other command changes its images.
        """
        with versioning.hold_domain(self.workspace, self.name, f"the data stages of {self.name}"):
            yield from self._follow()

    def _follow(self) -> Iterator[str]:
        proofs.forget_stages(self.workspace, self.name)
        waiting = tuple(self.waiting)
        targets = [f"{stage}@{self.name}" for stage in waiting]
        begun = 0
        lines = versioning.reproduce(self.workspace, "--single-item", "--force", *targets)
        yield next(lines)
        for line in lines:
            if line.startswith("Running stage '"):
                begun += 1
                if begun > 1:
                    yield waiting[begun - 2]
        yield waiting[-1]
