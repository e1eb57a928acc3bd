"""Whatever is sent to the endpoints that OpenAPI describes, the server answers, and with no 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error

from panoply.wire.request import ModelAnswer, scored
from tests.builders.gateway import Formula, serving

pytestmark = pytest.mark.slow


class Length(Formula):
    """Scores a response by its length."""

    async def ask(self, call):
        """Answers a call."""
        owed = [[""] if call.compares else item.responses for item in call.items]
        items = tuple(tuple(scored(len(r)) for r in responses) for responses in owed)
        return ModelAnswer(model=self.name, items=items)


APP, _ = serving(Length("a"), Length("b"), keys={"b": "secret"}, max_responses=100)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)


@SCHEMA.include(method="POST").parametrize()
@settings(
    max_examples=25,
    deadline=10_000,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_body_brings_the_server_down(case):
    case.call_and_validate(checks=[not_a_server_error])


def test_every_endpoint_is_fuzzed():
    operations = SCHEMA.include(method="POST").get_all_operations()
    paths = {operation.ok().path for operation in operations}
    assert len(paths) == 48
