"""The data stages of dvc.yaml for one domain: one DVC process, followed from stage to stage.

    with closing(Stages(workspace, name, version.md5, code)) as stages:
        stages.run("manifest")  # returns when that stage has ended; DVC goes on with the next meanwhile
        stages.run("features")

Forced, because DVC cannot see that Tessera's own code changed; not run at all where that and everything else is proven
to be as it was (see `proofs`).
"""

from collections.abc import Iterator

from components.data import proofs, versioning
from components.workspace import Workspace


class Stages:
    """What has ended and what is to do. A stage that failed raises as itself, and is tried again when asked again."""

    def __init__(self, workspace: Workspace, name: str, md5: str, code: str) -> None:
        self.workspace, self.name, self.code = workspace, name, code
        self.fresh = proofs.are_fresh(workspace, name, md5, code)
        self.waiting = [] if self.fresh else list(proofs.STAGES)
        self._going: Iterator[str] | None = None

    def run(self, stage: str) -> None:
        """Come to the end of this stage, and of those before it."""
        while stage in self.waiting:
            self._going = self._going or self._start()
            try:
                ended = next(self._going)
            except BaseException:
                self._going = None
                raise
            self.waiting.remove(ended)
            if not self.waiting:
                proofs.remember_stages(self.workspace, self.name, self.code)

    def close(self) -> None:
        """End DVC where it still works."""
        if self._going is not None:
            self._going.close()  # type: ignore[attr-defined]

    def _start(self) -> Iterator[str]:
        """The stages that wait, each when it has ended."""
        proofs.forget_stages(self.workspace, self.name)
        waiting = tuple(self.waiting)
        targets = [f"{stage}@{self.name}" for stage in waiting]
        begun = 0
        for line in versioning.reproduce(self.workspace, "--single-item", "--force", *targets):
            if line.startswith("Running stage '"):
                begun += 1
                if begun > 1:
                    yield waiting[begun - 2]
        yield waiting[-1]
