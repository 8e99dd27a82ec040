"""Trabecular fields, fine grids and the scanner's response against direct computations."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.simulate.bone import (
    MARROW_HU,
    MATRIX_HU,
    SMOOTHING_PER_SPACING,
    Structure,
    gaussian_field,
    trabeculae,
    volume_fraction,
)
from data_prep.simulate.grid import apply_axes, linear_weights
from data_prep.simulate.scanner import KVP_MINERAL_SCALE, SCANNERS, SITE_SCANNERS, noise, response


def _correlation(field: np.ndarray, axis: int, lag: int) -> float:
    values = np.moveaxis(field, axis, 0)
    return float(np.corrcoef(values[lag:].ravel(), values[:-lag].ravel())[0, 1])


def test_field_has_the_correlation_of_its_spectrum():
    """White noise smoothed by sigma correlates as exp(-r^2 / (4 sigma^2))."""
    structure = Structure(spacing_mm=1.5, anisotropy=2.0)
    sigma, step = SMOOTHING_PER_SPACING * 1.5, 0.1
    field = gaussian_field(
        np.random.default_rng(0), (120, 110, 100), step, structure, np.array([1.0, 0.0, 0.0])
    )
    assert field.shape == (120, 110, 100)
    assert field.dtype == np.float32
    assert field.std() == pytest.approx(1, abs=0.03)
    for lag in (1, 3, 5):
        along = np.exp(-((lag * step) ** 2) / (4 * (2 * sigma) ** 2))
        across = np.exp(-((lag * step) ** 2) / (4 * sigma**2))
        assert _correlation(field, 0, lag) == pytest.approx(along, abs=0.03)
        assert _correlation(field, 1, lag) == pytest.approx(across, abs=0.03)
        assert _correlation(field, 2, lag) == pytest.approx(across, abs=0.03)


def test_oblique_axis_turns_the_anisotropy():
    axis = np.array([1.0, 1.0, 0.0]) / np.sqrt(2)
    field = gaussian_field(np.random.default_rng(1), (90, 90, 90), 0.3, Structure(2.5, 2.0), axis)
    along = np.corrcoef(field[3:, 3:].ravel(), field[:-3, :-3].ravel())[0, 1]
    across = np.corrcoef(field[3:, :-3].ravel(), field[:-3, 3:].ravel())[0, 1]
    assert along > across + 0.2


@pytest.mark.parametrize("hu", [25.0, 110.0, 240.0])
def test_volume_fraction_gives_the_mean_hu(hu):
    rng = np.random.default_rng(2)
    field = rng.standard_normal((40, 40, 40)).astype(np.float32)
    inside = np.zeros(field.shape, bool)
    inside[5:35, 5:30] = True
    solid = trabeculae(field, inside, volume_fraction(hu))
    assert set(np.unique(solid)) == {0.0, 1.0}
    mean = MARROW_HU + (MATRIX_HU - MARROW_HU) * solid[inside].mean()
    assert mean == pytest.approx(hu, abs=0.2)


@pytest.mark.parametrize("step", [0.1, 0.9])
@pytest.mark.parametrize("sigma", [0.05, 0.6])
def test_response_is_aperture_times_point_spread(step, sigma):
    """Against a brute sum: 10^6 photons, each the voxel's box plus a Gaussian."""
    fine = np.arange(-9.0, 9.0, step)
    centres = np.array([-1.0, 0.35])
    weights = response(centres, fine, aperture_mm=1.5, sigma_mm=sigma)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    rng = np.random.default_rng(0)
    scatter = rng.uniform(-0.75, 0.75, 10**6) + rng.normal(0, sigma, 10**6)
    edges = np.append(fine - step / 2, fine[-1] + step / 2)
    for row, centre in zip(weights, centres, strict=True):
        expected = np.histogram(centre + scatter, edges)[0] / 10**6
        np.testing.assert_allclose(row, expected, atol=2.5e-3)


def test_noise_has_the_kernels_strength_and_colour():
    scanner = SCANNERS["scanner1"]
    field = noise(np.random.default_rng(3), (12, 128, 128), (0.8, 0.8), scanner)
    assert field.std() == pytest.approx(scanner.noise_hu, rel=1e-3)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128, 0.8), np.fft.fftfreq(128, 0.8)))
    power = (np.abs(np.fft.fft2(field)) ** 2).mean(0)
    bands = [power[np.abs(frequency - f) < 0.02].mean() for f in (0.03, 0.25, 0.6)]
    assert bands[1] > 2 * bands[0]  # the ramp
    assert bands[1] > 1.2 * bands[2]  # the roll-off
    assert abs(np.corrcoef(field[:-1].ravel(), field[1:].ravel())[0, 1]) < 0.02


def test_axis_matrices_against_einsum_and_interp():
    rng = np.random.default_rng(4)
    matrices = [rng.standard_normal(shape) for shape in ((3, 5), (4, 6), (2, 7))]
    volume = rng.standard_normal((5, 6, 7))
    expected = np.einsum("ai,bj,ck,ijk->abc", *matrices, volume)
    np.testing.assert_allclose(apply_axes(tuple(matrices), volume), expected, rtol=1e-10)
    coarse, fine = np.arange(2.0, 9.0, 0.9), np.arange(2.1, 7.9, 0.3)
    values = rng.standard_normal(len(coarse))
    np.testing.assert_allclose(
        linear_weights(fine, coarse) @ values, np.interp(fine, coarse, values), atol=1e-5
    )


def test_tube_voltage_scales_mineral_as_nist_attenuation_does():
    """HU of a little cortical bone (ICRU-44, 1.92 g/cm^3) in water, at each beam's mean energy."""
    energies, bone, water = [50, 60, 80], [0.4242, 0.3148, 0.2229], [0.2269, 0.2059, 0.1837]

    def hu(energy: float) -> float:
        at = [np.exp(np.interp(np.log(energy), np.log(energies), np.log(c))) for c in (bone, water)]
        return 1.92 * at[0] / at[1] - 1

    for kvp, energy in {80: 60.0, 100: 66.5, 120: 71.0, 140: 75.0}.items():
        assert KVP_MINERAL_SCALE[kvp] == pytest.approx(hu(energy) / hu(71.0), abs=0.02)
    assert SCANNERS["scanner3"].mineral_scale == 0.94  # 140 kV
    assert 131.3 / 140.9 < KVP_MINERAL_SCALE[140] < 131.3 / 138.3  # measured, modelled


def test_scanners_cover_clinical_slices_and_voltages_and_are_crossed():
    used = {name for sites in SITE_SCANNERS.values() for site in sites.values() for name in site}
    assert used == set(SCANNERS)
    assert {s.kvp for s in SCANNERS.values()} == set(KVP_MINERAL_SCALE)
    slices = [SCANNERS[n].slice_mm for site in SITE_SCANNERS["wide"].values() for n in site]
    assert (min(slices), max(slices)) == (0.7, 5.0)
    for sites in SITE_SCANNERS.values():
        for shares in sites.values():
            assert sum(shares.values()) == pytest.approx(1)
        for site in "ABC":  # each of its scanners is at another site too
            others = {n for s in sites if s != site for n in sites[s]}
            assert set(sites[site]) & others


def test_thick_slices_are_thin_ones_averaged():
    """The noise of a 3 mm slice is that of four 0.75 mm slices' mean: the same photons."""
    scanner = SCANNERS["scanner1"]
    assert scanner.with_slices(None) == scanner
    thin, thick = scanner.with_slices(0.75), scanner.with_slices(3.0)
    field = noise(np.random.default_rng(5), (400, 32, 32), (1.0, 1.0), thin)
    assert field.reshape(100, 4, 32, 32).mean(1).std() == pytest.approx(thick.noise_hu, rel=0.02)
