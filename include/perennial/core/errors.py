"""Every error Perennial raises on purpose, in one tree.

::

    PerennialError
    ├── SettingsError         the deployment's environment is wrong: which variable, and what to write
    ├── ReadOnly              a process that only reads was asked to write
    ├── SpecError             a model folder is wrong: file, line, and what would be right
    │   └── FormError         what the form of a run says cannot be used: which field, and what would be right
    ├── SourceError           a source could not be read as a table: which source, file, line
    ├── IntervalRefused       the data of an interval broke a critical check; what was published before stays
    ├── Superseded            a newer attempt owns this interval; this one may no longer write
    ├── SchemaMismatch        the ledger is older or newer than this code: which revision, and what to run
    ├── SnapshotMissing       a table or snapshot of the lake is not there (any more)
    ├── StaleDecision         the champion changed, or another promotion is open, since the decision was made
    ├── LedgerDamaged         a row of the ledger cannot be read: which table, and how to find it
    ├── ChainBroken           others changed the record of decisions, so nothing is added to it: what, what to do
    ├── PromotionRefused      the gates or an approver refused the version, and nobody gave a reason to override them
    ├── TrainingError         a training set or a candidate could not be made
    ├── ArtifactRejected      a model artifact does not match its manifest or holds an untrusted type
    │   ├── VersionUnusable   a version can never be used here again: its files, or what its features need, are gone
    │   └── ModelRenamed      the registered model has another name in MLflow: rename it back
    ├── NoChampion            no version of the model has been promoted yet
    ├── ScoringError          the champion's predictions cannot be published
    ├── ServingError          features or predictions cannot be given online: what is in the way, and what to do
    ├── NotAnswered           a request to the scorer is not answered: what is wrong, in which row and field
    ├── CalibrationError      stable history does not give thresholds for drift: what is in the way
    ├── LineageError          what is to be traced is not there: what was looked for, and where
    ├── CardError             a card or report would have an empty section: which, and what would fill it
    ├── BackupError           a backup cannot be made or restored: which file or database, and why
    ├── ErasureError          an entity cannot be erased as it was named, or a model not retired: why, and what to do
    ├── NotDelivered          a channel did not take a message: its answer, and whether a person has to repair it
    └── StackError            the embedded stack cannot start or stay up: what to do

A message names the model, the interval, the file or the column at fault, and what to do about it.
"""

from __future__ import annotations

from datetime import timedelta

from perennial.core.redaction import redact


class PerennialError(Exception):
    """The root of all errors that Perennial raises on purpose. Secrets are removed from its message."""

    def __init__(self, *words: object) -> None:
        super().__init__(*(redact(word) if isinstance(word, str) else word for word in words))


class SettingsError(PerennialError):
    """The environment of the deployment is missing a value or holds a wrong one."""


class ReadOnly(PerennialError):
    """A process that only reads was asked to write; nothing was written."""


class SpecError(PerennialError):
    """A model folder does not describe a model."""


class FormError(SpecError):
    """What the form of a run, or its conf, says cannot be used. A retry does not help; who filled it in has to correct it."""


class SourceError(PerennialError):
    """A source could not be read as a table."""


class SourceMissing(SourceError):
    """A source has not delivered: there is no such file yet."""


class IntervalRefused(PerennialError):
    """An interval's data broke a critical check beyond its tolerance; nothing of it was published."""


class Superseded(PerennialError):
    """A newer attempt has taken over the interval; nothing this attempt wrote is visible."""


class SchemaMismatch(PerennialError):
    """The ledger's tables are not those that this code knows."""


class SnapshotMissing(PerennialError):
    """A table, or a snapshot of one, is not in the lake: never published, or expired."""


class StaleDecision(PerennialError):
    """A promotion was decided against a champion that is no longer the champion, or while another one is open."""


class LedgerDamaged(PerennialError):
    """A row of the ledger does not have what Perennial writes there: another program has changed it, or the file is damaged."""


class ChainBroken(PerennialError):
    """The record of decisions is not as the judge has signed it, or is signed with another key. Nothing was added to it."""


class PromotionRefused(PerennialError):
    """A version did not pass its gates or was not approved, and no reason to override that was given."""


class TrainingError(PerennialError):
    """A training set or a candidate could not be made."""


class ArtifactRejected(PerennialError):
    """A model artifact differs from its manifest or holds a type that is not trusted."""


class VersionUnusable(ArtifactRejected):
    """A version cannot be used, and no retry will change that: MLflow or the tables no longer have what it needs.

    It is never raised because something does not answer.
    """


class ModelRenamed(ArtifactRejected):
    """The registered model was renamed in MLflow. Nothing is changed until it has its name back."""


class NoChampion(PerennialError):
    """The model has no promoted version."""


class NothingToRefresh(PerennialError):
    """The champion is not fitted on newer rows, and this is no failure. The message says why."""


class ScoringError(PerennialError):
    """Predictions cannot be published."""


class ServingError(PerennialError):
    """Features or predictions cannot be given online."""


class NotAnswered(PerennialError):
    """A request to the scorer is not answered.

    Args:
        words: what is wrong, for the client.
        status: of the answer in HTTP.
        row, field: where in the request it is wrong; the first row is 0.
        retry_after: seconds after which the client may try again.
    """

    def __init__(
        self, words: str, *, status: int = 422, row: int | None = None, field: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(words)
        self.status, self.row, self.field, self.retry_after = status, row, field, retry_after


class CalibrationError(PerennialError):
    """Thresholds for drift cannot be set from the history there is."""


class LineageError(PerennialError):
    """What is to be traced cannot be found."""


class CardError(PerennialError):
    """A card or release report would have an empty section."""


class BackupError(PerennialError):
    """A backup cannot be made, or one cannot be restored; what is there is left as it is."""


class ErasureError(PerennialError):
    """An entity cannot be erased as it was named, or a model cannot be retired as it stands; nothing was changed."""


class NotDelivered(PerennialError):
    """A channel did not take a message, or it is unknown whether it did.

    Attributes:
        after: the delay that it asks for; None if it asks for none.
        mend: whether it refuses until a person changes something.
        offends: whether it refuses this message alone.
    """

    def __init__(self, said: str, *, after: timedelta | None = None, mend: bool = False, offends: bool = False) -> None:
        super().__init__(said)
        self.after = after
        self.mend = mend
        self.offends = offends


class StackError(PerennialError):
    """The embedded stack cannot start or has lost a process."""


#: Errors that asking again cannot cure.
FINAL = (
    ArtifactRejected, ChainBroken, IntervalRefused, LedgerDamaged, NoChampion, PromotionRefused, SettingsError, SpecError,
    Superseded, TrainingError,
)  # fmt: skip
