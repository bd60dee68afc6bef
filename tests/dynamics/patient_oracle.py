"""The hidden physiology and the clinicians once more, in plain float64 NumPy, written from the equations."""

from __future__ import annotations

import numpy as np

from sepsis_jax.clinical.features import INDEX


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _hill(x, k, n):
    return x**n / (k**n + x**n)


def flow(x, p):
    """(i, e, m, Pms, CO, MAP, PF, SaO2, Hyp) of latent dict x and constants dict p, arrays [B]."""
    i = x["inflammation"] / (0.8 + x["inflammation"])
    e = _hill(x["dose"], p["vasopressor_ed50"] * (1 + 0.45 * x["inflammation"]), 1.2)
    m = _hill(x["dose"], 0.75, 4)
    tone = x["tone_loss"]
    svr = np.exp(-0.62 * tone * p["vasoplegia"]) * (1 + 0.95 * e)
    pms = np.clip(8 + 4 * (x["plasma"] - 0.6 * tone + 0.45 * e), 1.5, 24)
    sv = 1000 * p["cardiac_output"] / 74 * x["contractility"] * (1 + 0.1 * e)
    sv = sv * 1.6 * (pms / 8) / (0.6 + pms / 8) * svr**-0.3 * np.where(x["fibrillation"] > 0, 0.86, 1)
    co = x["heart_rate"] * sv / 1000 * (1 - 0.1 * np.maximum(x["heart_rate"] - 125, 0) / 25)
    pressure = 3 + 0.25 * pms + (p["map_set"] - 5) / p["cardiac_output"] * svr * co + 2.5 * x["pressure_noise"]
    trait = x["trait"]
    pf = np.clip(430 * np.exp(-0.71 * p["lung"] * np.sqrt(tone) - 0.34 * x["water"] + 0.1 * trait[:, 1]), 50, 520)
    fio2 = np.clip((92 + 14 * x["ventilated"]) / pf * np.exp(0.1 * trait[:, 2]), 0.28, 1)
    po2 = pf * fio2
    sao2 = 1 / (1 + 23400 / (po2**3 + 150 * po2))
    hb = p["hemoglobin"] * 5 / (5 + np.clip(x["plasma"], -1.5, 3))
    do2 = co / p["cardiac_output"] * (hb / 10.7) ** 0.5 * sao2 / 0.97
    hyp = np.maximum(1 - do2 / (0.8 + 0.12 * x["inflammation"]), 0)
    hyp = hyp + 0.55 * np.maximum(62 + 0.25 * (p["map_set"] - 86) - pressure, 0) / 20 + 0.35 * m
    return i, e, m, pms, co, pressure, pf, sao2, np.clip(hyp, 0, 2.5)


def _rates(x, p, fluid_l_h, abx):
    """Derivatives per hour of everything that is integrated, except heart rate."""
    i, _, m, pms, _, pressure, pf, _, hyp = flow(x, p)
    inflammation, damage, vi, liv, k0 = x["inflammation"], x["damage"], x["interstitial"], x["liver"], p["kidney"]
    urine = (0.058 + 0.035 * np.maximum(vi, 0)) * np.clip(x["kidney"], 0.02, 2.5) * _sigmoid((pressure - 60) / 6)
    urine = urine * np.exp(0.45 * np.clip(x["plasma"], -1.5, 1.5) + 0.25 * x["trait"][:, 3])
    urine = urine * np.where((vi > 3.5) & (pressure > 68) & (x["dose"] < 0.1), 1.9, 1)
    leak = x["plasma"] + 0.77 * i * p["leak"] - 0.33 / (1 + 0.6 * inflammation) * vi
    k_star = k0 * np.exp(-1.9 * hyp - 0.75 * i * p["leak"] - 0.25 * np.maximum(pms - 12, 0) / 4)
    k_star = k_star * np.exp(-0.07 * np.maximum(vi - 4.5, 0))
    lactate_out = 0.3 * (1 - 0.45 * np.minimum(liv / 2, 1)) * (1 - 0.35 * np.minimum(hyp, 1))
    infection = x["infection"]
    return {
        "inflammation": 0.075 * infection / (0.15 + infection) / p["immunity"] ** 0.5
        + 0.016 * damage / (1 + damage)
        + 0.012 * hyp
        - 0.03 * inflammation,
        "damage": 0.012 * np.maximum(inflammation - 0.8, 0)
        + 0.06 * hyp
        + 0.02 * m
        + 0.01 * np.maximum(1 - pf / 130, 0)
        - 0.0085 * damage,
        "tone_loss": (i - x["tone_loss"]) / 4,
        "contractility": (p["contractility"] * (1 - 0.28 * i - 0.12 * np.tanh(damage)) - x["contractility"]) / 12,
        "plasma": fluid_l_h + 0.01 - urine - leak,
        "interstitial": leak,
        "water": 0.01 * (1 + 0.8 * inflammation) * np.maximum(vi - 2, 0)
        + 0.045 * np.maximum(pms - 11.5, 0) / 4
        - 0.03 * x["water"],
        "urine": 1000 * urine,
        "kidney": (k_star - x["kidney"]) / np.where(k_star < x["kidney"], 14, 72),
        "lactate": 0.3 * (1 + 5 * hyp + 0.7 * i + m) - lactate_out * x["lactate"],
        "creatinine": 0.07
        * (np.minimum(p["creatinine"], 2.2) / p["creatinine"]) ** 0.4
        * (p["creatinine"] - x["creatinine"] * x["kidney"] / k0),
        "bun": 1.08 * ((p["creatinine"] / 0.8) ** 0.75 - 0.95 * x["bun"] / 16 * x["kidney"] / k0),
        "liver": 0.035 * hyp + 0.006 * inflammation - 0.018 * liv,
        "bilirubin": (p["bilirubin"] * (1 + 2.6 * liv**1.3 + 0.4 * inflammation) - x["bilirubin"]) / 40,
        "platelet": (p["platelet"] * np.exp(-0.42 * inflammation - 0.22 * damage) - x["platelet"]) / 60,
        "bicarbonate": (
            26.3 - (x["lactate"] - 1) - 2.2 * np.maximum(1 - x["kidney"] / k0, 0) - 0.35 * x["fluid"] - x["bicarbonate"]
        )
        / 10,
        "log infection": 0.085 * (1 - infection) - 0.045 * p["immunity"] - 0.115 * abx,
    }


def advance(x, p, dose, fluid_l, hours, noise):
    """Eight half hours. noise f[B,4+15]: pressure, inflammation, two event normals, traits. Without the events."""
    x = dict(x)
    drift = 0.75 * p["trait_mean"]
    x["trait"] = drift + 0.86 * (x["trait"] - drift) + 0.337 * noise[:, 4:]
    x["pressure_noise"] = noise[:, 0]
    x["inflammation"] = x["inflammation"] * np.exp(0.05 * noise[:, 1])
    x["dose"], x["fluid"], x["urine"] = dose, x["fluid"] + fluid_l, np.zeros_like(dose)
    abx = np.where(hours < p["switch_h"], p["antibiotic"], 1)
    for _ in range(8):
        rate = _rates(x, p, fluid_l / 4, abx)
        _, e, _, _, _, pressure, _, _, _ = flow(x, p)
        wanted = 70 + 0.8 * np.maximum(p["map_set"] - 6 - pressure, 0) + 13 * x["tone_loss"] + 6 * e
        wanted = wanted + 0.96 * x["inflammation"] + 24 * x["fibrillation"] + 15 * x["trait"][:, 0]
        heart_rate = np.clip(x["heart_rate"] + 0.6 * (wanted - x["heart_rate"]), 45, 165)
        infection = x["infection"] * np.exp(0.5 * rate.pop("log infection"))
        x |= {name: x[name] + 0.5 * value for name, value in rate.items()}
        x |= {"heart_rate": heart_rate, "infection": infection}
    return x


def propensities(obs, previous, hours, given, style, hidden):
    """f[25] action probabilities of one decision, by an explicit double loop."""
    pressure, lactate = obs[INDEX["meanbp"]], obs[INDEX["lactate"]]
    need = (64.5 - pressure) / 8
    move = 1.15 * need if need > 0 else 0.8 * min(max(need + 0.15, -2.2), 0)
    vaso = min(max(previous[0] + move + 0.25 * (lactate > 3 and pressure < 72) + 0.6 * hidden, 0), 4)
    fluid = 1.05 + 2.2 * np.exp(-hours / 10) + 0.75 * min(max((69 - pressure) / 8, -0.6), 1.8)
    fluid += 0.42 * min(max(lactate - 2, -0.5), 3) + 0.35 * (obs[INDEX["output_4hourly"]] < 80)
    fluid -= 0.14 * max(given - 3, 0) + 0.35 * max(2 - obs[INDEX["pao2"]] / obs[INDEX["fio2"]], 0)
    fluid += 0.25 * previous[1] + style + 0.6 * hidden
    weight = np.empty((5, 5))
    for v in range(5):
        for f in range(5):
            logit = -((v - vaso) ** 2) / (2 * 0.48**2) - 1.6 * (v > 0 and previous[0] == 0 and pressure > 66)
            logit += -((f - fluid) ** 2) / (2 * 1.15**2) + {0: 0.35, 4: 0.15}.get(f, 0)
            weight[v, f] = np.exp(logit)
    return 0.97 * (weight / weight.sum()).reshape(25) + 0.03 / 25
