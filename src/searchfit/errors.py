"""Every error that a user can cause or repair. The tree:

    SearchfitError            something the user can act on; `hint` says what to do
      SettingsError           an unknown setting, a wrong value, settings that contradict each other (exit 2)
        FilterError           a filter that does not parse, or names a column or type that is not there
      SourceError             documents, queries or judgements that cannot be read
      ModelError              a model that is absent, damaged or not to be trusted
      GeneratorError          a generator that cannot go on: no key, a server that refuses or does not answer
      MissingExtraError       an optional dependency that is not installed
      WorkspaceError          a workspace that is absent, locked, damaged or incomplete
      StoreError              a store elsewhere that cannot be reached, refuses, or holds another index

Anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations


class SearchfitError(Exception):
    """An error for the user: `message` says what was got and expected, `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel between processes, and a child may be made from other arguments than these.
        return _again, (type(self), self.message, self.hint)


def _again(kind: type[SearchfitError], message: str, hint: str) -> SearchfitError:
    error = kind.__new__(kind)
    SearchfitError.__init__(error, message, hint)
    return error


class SettingsError(SearchfitError):
    """A setting is unknown, has a wrong value or contradicts another."""


class FilterError(SettingsError):
    """A filter does not parse, or names a column or a type that is not there."""


class SourceError(SearchfitError):
    """Documents, queries or judgements cannot be read."""


class ModelError(SearchfitError):
    """A model is absent, damaged or not to be trusted."""


class GeneratorError(SearchfitError):
    """A generator cannot go on: its key is absent, or its server refuses or does not answer."""


class WorkspaceError(SearchfitError):
    """A workspace is absent, locked by another process, damaged or incomplete."""


class StoreError(SearchfitError):
    """A store outside of the workspace cannot be reached, refuses, or holds another index."""


class MissingExtraError(SearchfitError):
    """An optional dependency is not installed: an extra of ours, or what `command` installs."""

    def __init__(self, what: str, extra: str, command: str = "") -> None:
        command = command or f'pip install "searchfit[{extra}]"'
        super().__init__(f"{what} needs an optional dependency.", f"Run: {command}")
