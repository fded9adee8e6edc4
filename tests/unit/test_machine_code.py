"""What numba compiles runs, whatever has become of the folder in which its machine code is kept."""

import errno

import pytest

pytest.importorskip("numba")

from numba.core import caching

from kvtools import machine_code


def doubled(x):
    return 2 * x


@pytest.mark.parametrize("fault", ["nowhere to write", "a full disk", "damaged"])
def test_it_is_compiled_where_machine_code_cannot_be_kept(monkeypatch, tmp_path, fault):
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    if fault == "nowhere to write":
        monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    elif fault == "a full disk":
        raising = OSError(errno.ENOSPC, "no space left on device")
        monkeypatch.setattr(caching.IndexDataCacheFile, "_save_index", lambda *_: (_ for _ in ()).throw(raising))
    else:
        assert machine_code.compiled()(doubled)(3) == 6
        (index,) = tmp_path.rglob("*.nbi")
        index.write_bytes(b"")
    assert machine_code.compiled()(doubled)(4) == 8
