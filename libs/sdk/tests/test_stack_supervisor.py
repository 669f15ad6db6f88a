"""The supervisor with small processes in place of servers."""

import sys
from pathlib import Path

from tidemill.stack import control
from tidemill.stack.endpoints import Endpoints
from tidemill.stack.plan import Layout
from tidemill.stack.programs import Program
from tidemill.stack.spec import StackSpec
from tidemill.stack.state import FAILED, read_state
from tidemill.stack.supervisor import Prepared, Supervisor


async def never() -> bool:
    return False


async def test_a_failed_start_shows_no_lines_of_an_earlier_one(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    toy = Program(name="toy", command=(sys.executable, "-c", "raise SystemExit('a fault of now')"), ready=never)
    prepared = Prepared(
        spec=StackSpec(name="n", home=tmp_path),
        layout=layout,
        ports={},
        endpoints=Endpoints(kafka="k:1", redis="redis://r", postgres_dsn="postgresql://p"),
        tiers=((toy,),),
        control=str(control.socket_path(tmp_path)),
    )
    layout.logs.mkdir()
    layout.log("toy").write_text("a fault of yesterday\n")
    assert await Supervisor(prepared, foreground=False).run(lifeline=False) == 1
    state = read_state(layout.state_file)
    assert state is not None
    assert state.status == FAILED
    assert "toy | a fault of now" in state.message
    assert "yesterday" not in state.message
