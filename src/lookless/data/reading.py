"""How a user says that data are to be read and scored, as one record: the options of every command that takes data."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from pydantic import BaseModel, ConfigDict

from .load import load_data
from .samples import Samples


class Reading(BaseModel):
    """How data are read and scored, where they do not say it themselves; ``str()`` gives the options of a command.

    Attributes:
        columns, prompt_suffix, skip_bad, metric: as for :func:`lookless.load_data`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: dict[str, str] | None = None
    prompt_suffix: str | None = None
    skip_bad: bool = False
    metric: str | None = None

    def load(
        self,
        where: str,
        *,
        split: str = "test",
        limit: int | None = None,
        seed: int | None = None,
        without: Collection[str] = (),
    ) -> Samples:
        """``where``, ``split``, ``limit``, ``seed`` and ``without`` are as for :func:`lookless.load_data`; errors, too.

        Raises:
            DataError: as there.
        """
        return load_data(
            where,
            split=split,
            limit=limit,
            seed=seed,
            without=without,
            columns=self.columns,
            prompt_suffix=self.prompt_suffix,
            skip_bad=self.skip_bad,
            metric=self.metric,
        )

    def __str__(self) -> str:
        pairs = [f"{key}={name}" for key, name in sorted((self.columns or {}).items())]
        given = {"--columns": ",".join(pairs) or None, "--prompt-suffix": self.prompt_suffix, "--metric": self.metric}
        words = [word for option, value in given.items() if value is not None for word in (option, value)]
        return shlex.join([*words, "--skip-bad"] if self.skip_bad else words)


#: With no option given.
AS_IS = Reading()
