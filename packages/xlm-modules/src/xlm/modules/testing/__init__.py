"""Behaviour that every model family has to show, as a pytest class to subclass.

    from xlm.modules.testing import ConformanceSuite

    class TestConformance(ConformanceSuite[MyBatch, MyPromptBatch]):
        ordinary_ids = range(7, 12)
        ...
        def build_model(self) -> nn.Module: ...

A family is a network, a loss and a predictor that are handed the network on each call, and collators that
make their batches of examples. The suite sees them through Protocols only and knows nothing about how a
family works: that its numbers are right is for the family's own tests to show.
"""

from xlm.modules.records import Example
from xlm.modules.testing.examples import Edge, Kind
from xlm.modules.testing.parts import CountingModel, WholeRows, replay, to_list
from xlm.modules.testing.saving import SavedModel, SavingSuite
from xlm.modules.testing.suite import ConformanceSuite

__all__ = [
    "ConformanceSuite",
    "CountingModel",
    "Edge",
    "Example",
    "Kind",
    "SavedModel",
    "SavingSuite",
    "WholeRows",
    "replay",
    "to_list",
]
