from mmdet_sssd.commands.locks import locked


def test_waiting_processes_get_a_lock_in_turn(tmp_path):
    """Also when the same file is named twice."""
    with locked(tmp_path / 'a', tmp_path / 'b', tmp_path / 'a') as first:
        assert first
        with locked(tmp_path / 'b', wait=0.3) as second:
            assert not second
    with locked(tmp_path / 'b', wait=0) as second:
        assert second
