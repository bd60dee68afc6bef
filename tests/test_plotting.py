"""Figures of a sweep: what is in their axes."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from sepsis_jax import plotting
from sepsis_jax.clinical.actions import ALL_ACTIONS

FEATURES, EVENTS = ("meanbp", "lactate"), ("died", "lactate_falls", "sofa")


@pytest.fixture
def sweep():
    """Two stays, one decision, 25 actions, three steps."""
    rng = np.random.default_rng(0)
    leading, sizes = ("episode", "time", "candidate"), (2, 1, 25)
    inner = {"obs": (("horizon", 3), ("feature", 2), ("statistic", 4)), "events": (("horizon", 3), ("event", 3))}
    arrays = {}
    for name in ("value", "death_90d", "obs", "events"):
        dims, shape = zip(*inner.get(name, ()), strict=True) if name in inner else ((), ())
        arrays[name] = ((*leading, *dims), rng.random((*sizes, *shape), np.float32))
    coords = {
        "episode": [7, 8],
        "time": [2],
        "candidate": [f"({vasopressor}, {fluid})" for vasopressor, fluid in ALL_ACTIONS],
        "horizon": [4, 8, 12],
        "feature": list(FEATURES),
        "statistic": ["mean", "q10", "q50", "q90"],
        "event": list(EVENTS),
        "feature_units": ("feature", ["mmHg", "mmol/L"]),
    }
    return xr.Dataset(arrays, coords)


def test_fans_show_medians_and_bands(sweep):
    figure = plotting.sweep_fans(sweep, 8, 2, ["(3, 2)", "(0, 0)"])
    assert [axes.get_title() for axes in figure.axes] == ["meanbp (mmHg)", "lactate (mmol/L)"]
    medians = {line.get_label(): line for line in figure.axes[1].lines if not line.get_label().startswith("_")}
    assert list(medians) == ["(3, 2)", "(0, 0)"]
    expected = sweep.obs.sel(episode=8, time=2, candidate="(3, 2)", feature="lactate")
    np.testing.assert_allclose(medians["(3, 2)"].get_ydata(), expected.sel(statistic="q50"))
    np.testing.assert_array_equal(medians["(3, 2)"].get_xdata(), [4, 8, 12])
    band = figure.axes[1].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(expected.sel(statistic=["q10", "q90"]).min().item())


def test_maps_show_every_action(sweep):
    figure = plotting.sweep_maps(sweep, 7, 2)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "expected return",
        "90-day mortality, %",
        "died after 12 h, %",
        "lactate_falls after 12 h, %",
        "sofa after 12 h",
    ]
    here = sweep.sel(episode=7, time=2)
    falls = here.events.sel(event="lactate_falls", horizon=12).values
    np.testing.assert_allclose(figure.axes[3].images[0].get_array(), 100 * falls.reshape(5, 5), rtol=1e-6)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array()[3, 2], here.value.sel(candidate="(3, 2)"))
    assert all(len(axes.texts) == 25 for axes in figure.axes)


def test_a_map_of_nothing_is_blank(sweep):
    figure = plotting.sweep_maps(sweep.assign(events=sweep.events.where(sweep.event != "sofa")), 7, 2)
    assert not figure.axes[4].texts and plotting.png(figure).startswith(b"\x89PNG")


def test_effects_are_differences_from_no_treatment(sweep):
    figure = plotting.sweep_effects(sweep, 2)
    axes = figure.axes[0]
    assert axes.get_ylabel() == "effect on meanbp (mmHg)" and len(axes.lines) == 26  # 25 actions, and zero
    mean = sweep.obs.sel(statistic="mean", time=2, feature="meanbp")
    expected = (mean.sel(candidate="(1, 3)") - mean.sel(candidate="(0, 0)")).mean("episode")
    np.testing.assert_allclose(axes.lines[8].get_ydata(), expected, rtol=1e-5)
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), 0)


def test_other_candidates_are_not_the_25_actions(sweep):
    assert plotting.has_all_actions(sweep)
    assert not plotting.has_all_actions(sweep.isel(candidate=slice(0, 24)))
    assert not plotting.has_all_actions(sweep.isel(candidate=slice(None, None, -1)))


def test_training_shows_every_update_and_their_mean():
    log = {"step": np.arange(1, 41), "loss": np.r_[np.nan, np.arange(39.0)], "kl": np.ones(40)}
    figure = plotting.training(log, {"loss": "loss", "kl": "distance"})
    assert [axes.get_title() for axes in figure.axes] == ["loss", "distance"]
    raw, mean = (line.get_ydata() for line in figure.axes[0].lines)
    np.testing.assert_array_equal(raw, log["loss"])
    assert mean[0] == 0 and mean[20] == np.mean(log["loss"][18:22])
