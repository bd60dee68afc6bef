"""Released files come in right, and nothing but data comes in."""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from released_files import config_json, make_stay, scaler_json, write

from sepsis_jax.clinical import sofa
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.clinical.features import NAMES, URINE
from sepsis_jax.data import released
from sepsis_jax.data.episodes import DTYPES
from sepsis_jax.errors import InputError


@pytest.fixture
def stays() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [make_stay(rng, stay_id, steps)[0] for stay_id, steps in ((30000001, 3), (30000002, 9))]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("numpy_1", [False, True], ids=["numpy2", "numpy1"])
def test_episodes_arrive_in_clinical_units(tmp_path: Path, protocol: int, numpy_1: bool):
    rng = np.random.default_rng(1)
    made = [make_stay(rng, stay_id, steps) for stay_id, steps in ((30000001, 3), (30000002, 9))]
    content = pickle.dumps([stay for stay, _ in made], protocol)
    if numpy_1:
        content = as_numpy_1(content)
    got, scaler = released.load(*write(tmp_path, content))
    assert (got.num_stays, got.num_steps) == (2, 9)
    np.testing.assert_array_equal(got.length, [3, 9])
    for row, (stay, clinical) in enumerate(made):
        steps = len(clinical)
        np.testing.assert_allclose(got.obs[row, :steps], clinical, rtol=2e-4, atol=2e-4)
        np.testing.assert_array_equal(got.mask[row, :steps], stay["mask"] == 1)
        np.testing.assert_array_equal(got.action[row, :steps, 0], stay["vaso_actions"])
        np.testing.assert_array_equal(got.action[row, :steps, 1], stay["fluid_actions"])
        np.testing.assert_allclose(scaler.normalize(got.obs[row, :steps]), stay["obs"], atol=1e-3)
        np.testing.assert_allclose(scaler.normalize_static(got.static[row : row + 1])[0], stay["static"], atol=1e-5)
        for value in (got.obs, got.mask, got.action, got.vaso_dose, got.fluid_ml, got.sofa):
            assert not np.asarray(value)[row, steps:].any()


def as_numpy_1(content: bytes) -> bytes:
    """The same pickle as NumPy below 2 wrote it: module numpy.core, one byte shorter."""
    content = content.replace(b"cnumpy._core", b"cnumpy.core")
    for leaf in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + leaf, b"numpy.core." + leaf
        content = content.replace(b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old)
    if content[:1] == b"\x80" and content[1] >= 4:  # frames carry their length: leave them out
        return content[:2] + content[11:]
    return content


def test_contract_holds_and_unknowns_have_their_documented_values(tmp_path: Path, stays: list[dict[str, Any]]):
    got, _ = released.load(*write(tmp_path, stays))
    sizes = {"B": got.num_stays, "T": got.num_steps}
    for name, (dtype, shape) in DTYPES.items():
        value = getattr(got, name)
        if name == "propensity":
            assert value is None
            continue
        assert (value.dtype, value.shape) == (np.dtype(dtype), tuple(sizes.get(n, n) for n in shape)), name
    assert set(got.weight_kg) == {80.0}
    np.testing.assert_array_equal(got.mortality_90d, [1, 0])
    np.testing.assert_array_equal(got.mortality_hospital, [-1, -1])
    assert not (got.exit.any() or got.ventilated.any() or got.prior_action.any())
    assert (got.split == 2).all()
    np.testing.assert_array_equal(got.stay_id, [30000001, 30000002])
    valid = np.arange(got.num_steps) < got.length[:, None]
    doses = np.asarray(AI_CLINICIAN_BINS.doses(got.action))
    np.testing.assert_array_equal(got.vaso_dose[valid], doses[..., 0][valid])
    np.testing.assert_array_equal(got.fluid_ml[valid], doses[..., 1][valid])


def test_urine_is_never_negative(tmp_path: Path, stays: list[dict[str, Any]]):
    stays[0]["obs"][0, URINE] = -4.0
    got, _ = released.load(*write(tmp_path, stays))
    assert got.obs[0, 0, URINE] == 0 and (got.obs[0, 1:3, URINE] > 0).all()


def test_sofa_sees_the_treatment_of_its_own_interval(tmp_path: Path, stays: list[dict[str, Any]]):
    got, _ = released.load(*write(tmp_path, stays))
    still, urine = np.array(False), np.asarray(sofa.urine_24h(got.obs[..., URINE]))
    for row, length in enumerate(got.length):
        for t in range(length):
            dose = got.vaso_dose[row, t - 1] if t else np.float32(0)
            assert got.sofa[row, t] == sofa.proper(got.obs[row, t], still, dose, urine[row, t])


# --- bad input: file, field, expected and found, in one line ---


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.pop(key)


def replaced(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({key: value})


@pytest.mark.parametrize(
    "key", ["stay_id", "obs", "mask", "static", "actions", "vaso_actions", "fluid_actions", "mortality_90d"]
)
def test_a_missing_key_is_named(tmp_path: Path, stays: list[dict[str, Any]], key: str):
    stays[1].pop(key)
    with pytest.raises(InputError, match=rf"test\.pkl: episode 1, {key}: expected .*, found no such key"):
        released.load(*write(tmp_path, stays))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("obs", np.zeros((9, 38)), r"shape \[9, 39\], found shape \[9, 38\]"),
        ("obs", np.zeros((0, 39)), r"shape \[1, 39\], found shape \[0, 39\]"),
        ("obs", np.full((9, 39), np.nan), "finite numbers"),
        ("obs", np.full((9, 39), -60.0), "z-scores within 50, found -60"),
        ("obs", [[1.0], [1.0, 2.0]], "numbers of shape"),
        ("obs", "words", "numbers of shape"),
        ("obs", None, "numbers of shape"),
        ("mask", np.zeros((8, 38)), r"shape \[9, 38\], found shape \[8, 38\]"),
        ("mask", np.full((9, 38), 0.5), "values of 0, 1, found 0.5"),
        ("static", np.zeros(4), r"shape \[3\]"),
        ("vaso_actions", np.full(9, 5), "values of 0, 1, 2, 3, 4, found 5"),
        ("fluid_actions", np.full(9, -1), "values of 0, 1, 2, 3, 4, found -1"),
        ("mortality_90d", 2, "values of 0, 1, found 2"),
        ("actions", np.zeros((9, 10)), "one-hots"),
        ("actions", np.zeros((9, 9)), r"shape \[9, 10\]"),
        ("stay_id", "abc", "a number, found str 'abc'"),
        ("stay_id", 2**40, "a 32-bit id"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, stays: list[dict[str, Any]], key: str, value: Any, message: str):
    stays[1][key] = value
    with pytest.raises(InputError, match=rf"episode 1, {key}: expected .*{message}") as caught:
        released.load(*write(tmp_path, stays))
    assert "\n" not in str(caught.value)


def test_a_sex_that_is_none_is_named(tmp_path: Path, stays: list[dict[str, Any]]):
    stays[1]["static"] = np.array([0.3, 7.0, 0.1])
    with pytest.raises(InputError, match="episode 1, gender: expected values of 0, 1, found 7"):
        released.load(*write(tmp_path, stays))


@pytest.mark.parametrize("content", [[], {}, None, [1], ["x"], 3])
def test_something_other_than_episodes(tmp_path: Path, content: Any):
    with pytest.raises(InputError, match=r"test\.pkl"):
        released.load(*write(tmp_path, content))


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("scaler", without("dyn_mean"), "dyn_mean: expected .* found no such key"),
        ("scaler", replaced("dyn_std", [1.0] * 38), r"dyn_std: expected .*\[39\], found shape \[38\]"),
        ("scaler", replaced("dyn_std", [0.0] * 39), "dyn_std: expected standard deviations above 0"),
        ("scaler", replaced("dyn_cols", list(NAMES[::-1])), "dyn_cols"),
        ("scaler", replaced("urine_log_transform", False), "urine_log_transform: expected True, found False"),
        ("scaler", without("urine_idx"), "urine_idx: expected 38, found no such key"),
        ("config", without("static_scaler_mean"), "static_scaler_mean"),
        ("config", replaced("static_scaler_std", [1.0]), "static_scaler_std"),
        ("config", replaced("static_cols", ["age"]), "static_cols"),
        ("config", without("dynamic_cols"), "dynamic_cols"),
    ],
)
def test_a_bad_scaler_is_named(
    tmp_path: Path, stays: list[dict[str, Any]], which: str, change: Callable[[dict[str, Any]], None], message: str
):
    content = scaler_json() if which == "scaler" else config_json()
    change(content)
    with pytest.raises(InputError, match=message):
        released.load(*write(tmp_path, stays, **{which: content}))


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "[" * 100_000, "\x80"])
def test_broken_json(tmp_path: Path, stays: list[dict[str, Any]], text: str):
    paths = write(tmp_path, stays)
    paths[1].write_text(text, encoding="latin1")
    with pytest.raises(InputError, match=r"scaler_params_log\.json"):
        released.load(*paths)


def test_missing_and_oversized_files(tmp_path: Path, stays: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    paths = write(tmp_path, stays)
    with pytest.raises(InputError, match="expected a file, found none"):
        released.load(tmp_path / "nowhere.pkl", *paths[1:])
    monkeypatch.setattr(released, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(InputError, match="at most 100 bytes"):
        released.load(*paths)


@pytest.mark.parametrize("cut", [0, 1, 10, 200, -1])
def test_a_truncated_pickle(tmp_path: Path, stays: list[dict[str, Any]], cut: int):
    with pytest.raises(InputError, match="a pickle of arrays and plain values"):
        released.load(*write(tmp_path, pickle.dumps(stays)[:cut]))


# --- pickles that do something ---


class _Reduce:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _global(module: str, name: str, argument: str) -> bytes:
    """Protocol 0: call module.name(argument), whether or not the module exists here."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


def _kind_with_parts() -> bytes:
    """A dtype whose state says that its bytes are objects, and an array of it: NumPy would take bytes for pointers."""
    kind = (
        b"cnumpy\ndtype\n(VV8\nI00\nI01\ntR(I3\nV|\nN(Va\nt(dVa\n(cnumpy\ndtype\n(VO\nI00\nI01\ntRI0\ntsI8\nI1\nI0\ntb"
    )
    return b"cnumpy._core.numeric\n_frombuffer\n(C\x08AAAAAAAA" + kind + b"(I1\ntVC\ntR."


def _malicious(marker: Path) -> dict[str, bytes]:
    touch = f"open({str(marker)!r}, 'w').close()"
    command = f"touch {marker}"
    stack_global = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(command)]) + command.encode() + b"\x85R."
    return {
        "os.system": _global("os", "system", command),
        "posix.system": _global("posix", "system", command),
        "eval": pickle.dumps(_Reduce(eval, touch)),
        "exec": pickle.dumps([{"obs": _Reduce(exec, touch)}]),
        "builtins.open": pickle.dumps(_Reduce(open, str(marker), "w")),
        "getattr": _global("builtins", "getattr", "x"),
        "subprocess": _global("subprocess", "getoutput", command),
        "stack_global": stack_global,
        "inst": f"(V{command}\nios\nsystem\n.".encode(),
        "obj": f"(cos\nsystem\nV{command}\no.".encode(),
        "extension": b"\x80\x02\x82\x01.",
        "persistent id": b"Pmine\n.",
        "dotted numpy": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",
        "numpy.load": _global("numpy", "load", str(marker)),
        "numpy.f2py": _global("numpy.f2py.diagnose", "run", ""),
        "numpy loadtxt": _global("numpy.core.multiarray", "fromfile", str(marker)),
        "numpy testing": _global("numpy.testing._private.utils", "runstring", touch),
        "codec": b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
        "ndarray itself": pickle.dumps(_Reduce(np.ndarray, (2,))),
        "objects in a dtype": _kind_with_parts(),
        "attribute of a builder": b"c_codecs\nencode\n(N(dV__defaults__\n(Vlatin1\ntstb.",
        "object array": pickle.dumps(np.array([_Reduce(exec, touch)], object)),
        "unknown module": _global("antigravity", "fly", ""),
        "memory": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    }


@pytest.mark.parametrize("name", _malicious(Path("x")))
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path: Path, name: str):
    marker = tmp_path / "ran"
    paths = write(tmp_path, _malicious(marker)[name])
    with pytest.raises(InputError, match=r"test\.pkl: expected .*arrays and plain values") as caught:
        released.load(*paths)
    assert not marker.exists()
    assert "\n" not in str(caught.value)


def test_ids_are_whole_and_each_ones_own(tmp_path: Path, stays: list[dict[str, Any]]):
    for ids in ((7, 7), (1.2, 1.7)):
        some = [stay | {"stay_id": one} for stay, one in zip(stays, ids, strict=False)]
        with pytest.raises(InputError, match="stay_id"):
            released.load(*write(tmp_path, pickle.dumps(some)))


@pytest.mark.parametrize("name", ["os.system", "eval", "exec", "stack_global", "inst", "obj", "object array"])
def test_the_table_above_is_dangerous(tmp_path: Path, name: str):
    """The plain unpickler does run them, so the refusals mean something."""
    marker = tmp_path / "ran"
    pickle.loads(_malicious(marker)[name])
    assert marker.exists()
