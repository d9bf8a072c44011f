"""What is said of a file that cannot be written."""

from pathlib import Path

import pytest

from rescue_cli.errors import RescueError
from rescue_cli.rundir import write_text


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no sysfs here")
def test_where_nothing_may_be_written_the_cure_is_not_to_free_space() -> None:
    """Nobody, root included, makes a file there."""
    with pytest.raises(RescueError) as refused:
        write_text(Path("/sys/kernel/rescue.txt"), "x")
    message = str(refused.value)
    assert message.startswith("/sys/kernel/rescue.txt: could not be written (")
    assert message.endswith("). Make its folder writable, or use another.")
    assert "partial" not in message
