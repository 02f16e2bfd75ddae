"""Reading runs, principal components against numpy, and projections against closed forms."""

import weakref

import numpy as np
import pytest
import torch
import xarray as xr
from recorded import record
from safetensors.torch import save_file
from torch import nn

import pylandscape as pl
from pylandscape.trajectory import principal
from pylandscape.trajectory.snapshots import Snapshot


def small_model():
    """42 parameters in three tensors, float64."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1, bias=False)).double()


def objective_of(model, **options):
    torch.manual_seed(2)
    inputs = torch.randn(9, 5).double()
    return pl.Objective(model, nn.MSELoss(), (inputs, inputs.sum(1, keepdim=True)), **options)


def random_path(count=8, size=42, seed=0):
    """A random walk: rows of many different variances."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64).cumsum(0)


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def objective(model):
    return objective_of(model)


# -- reading --------------------------------------------------------------------------------------


def test_vectors_states_and_loading_give_what_was_recorded(tmp_path, model):
    vectors = random_path()
    path = record(tmp_path, model, vectors)
    space = pl.ParameterSpace.from_model(model)
    assert len(path) == 8
    assert path.steps == list(range(8))
    for index in (0, 3, -1):
        assert torch.equal(path.vector(index, space), vectors[index])
        assert torch.equal(space.flatten(path.state(index)), vectors[index])
    assert path.vector(2, space, torch.float32).dtype == torch.float32
    path.load_into(model, 2)
    assert torch.equal(space.flatten(model), vectors[2])


def test_iteration_holds_one_snapshot_at_a_time(tmp_path, model):
    path = record(tmp_path, model, random_path())
    alive: list[weakref.ref] = []
    for state in path:
        alive.append(weakref.ref(next(iter(state.values()))))
        del state
        assert sum(reference() is not None for reference in alive) == 0
    assert len(alive) == len(path)


def test_a_state_is_a_copy_and_not_the_file(tmp_path, model):
    path = record(tmp_path, model, random_path(2))
    before = path.state(0)
    for tensor in path.state(0).values():
        tensor.zero_()
    for name, tensor in path.state(0).items():
        assert torch.equal(tensor, before[name])


def test_a_log_line_cut_off_by_a_crash_is_left_out(tmp_path, model):
    path = record(tmp_path, model, random_path())
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 7, "epoch": 0, "loss": 1.')
    np.testing.assert_array_equal(path.log.step, np.arange(7))
    text = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(text.replace('{"step": 3', '{"st', 1))
    with pytest.raises(ValueError, match=r"one JSON object per line, got line 4"):
        _ = path.log


def test_damaged_snapshots_are_named_or_skipped(tmp_path, model):
    path = record(tmp_path, model, random_path())
    files = [snapshot.file for snapshot in path.snapshots]
    files[1].write_bytes(files[1].read_bytes()[:-20])
    files[2].write_bytes(b"")
    files[3].write_bytes(b"nonsense" * 100)
    save_file({"weight": torch.zeros(3)}, files[4])
    with pytest.raises(ValueError, match=r"step-000000001.safetensors must be a complete snapshot"):
        pl.Trajectory(tmp_path)
    assert pl.Trajectory(tmp_path, skip_damaged=True).steps == [0, 5, 6, 7]
    for number in (2, 3, 4):
        with pytest.raises(ValueError, match=f"step-00000000{number}.safetensors must be"):
            Snapshot(files[number])
    with pytest.raises(ValueError, match=r"step-000000001.*damaged"):
        path.state(1)  # damaged after the trajectory was opened
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="got 8 damaged ones"):
        pl.Trajectory(tmp_path, skip_damaged=True)


def test_a_folder_without_a_run_is_refused(tmp_path):
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="must hold a recorded run"):
            pl.Trajectory(directory)


@pytest.mark.parametrize("index", [8, -9])
def test_an_index_beyond_the_end_is_refused(tmp_path, model, index):
    path = record(tmp_path, model, random_path())
    with pytest.raises(IndexError, match="from -8 to 7"):
        path.state(index)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(5, 7)), r"shape \[7, 5\] for '0.weight' where .* shape \[6, 5\]"),
        (nn.Sequential(nn.Linear(5, 6)), r"no tensor for '2.weight' where .* shape \[1, 6\]"),
        (nn.Linear(5, 6), r"shape \[6, 5\] for 'weight' where .* no tensor"),
    ],
)
def test_another_model_is_refused_at_the_first_mismatch(tmp_path, model, other, message):
    path = record(tmp_path, model, random_path())
    with pytest.raises(ValueError, match=message):
        path.vector(0, pl.ParameterSpace.from_model(other))
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(ValueError, match=message):
        path.load_into(other, 0)
    for parameter, old in zip(other.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_frozen_parameters_are_recorded_but_not_part_of_the_vector(tmp_path, model):
    model[0].bias.requires_grad_(False)
    space = pl.ParameterSpace.from_model(model)
    path = record(tmp_path, model, random_path(3, space.size))
    assert path.vector(0, space).shape == (36,)
    assert torch.equal(path.state(0)["0.bias"], model[0].bias)


# -- principal components -------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [1, 8 * 8 * 5, 1 << 20])
@pytest.mark.parametrize("convention", ["centered", "final"])
def test_components_are_those_of_a_singular_value_decomposition(
    tmp_path, objective, monkeypatch, convention, block_bytes
):
    monkeypatch.setattr(principal, "BLOCK_BYTES", block_bytes)
    vectors = random_path()
    path = record(tmp_path, objective.model, vectors)
    found = pl.principal_directions(objective, path, count=3, convention=convention)
    rows = (vectors - vectors[-1]).numpy()
    if convention == "centered":
        rows = rows - rows.mean(0)
    left, singular, right = np.linalg.svd(rows, full_matrices=False)
    signs = np.sign([column[np.abs(column).argmax()] for column in left.T[:3]])
    np.testing.assert_allclose(found.vectors, signs[:, None] * right[:3], atol=1e-12)
    shares = singular**2 / (singular**2).sum()
    np.testing.assert_allclose(found.attrs["explained_variance"], shares[:3], rtol=1e-12)
    assert torch.equal(found.center, vectors[-1])
    assert found.attrs["convention"] == convention
    assert (found.attrs["snapshots"], found.attrs["steps"]) == (8, [0, 7])


def test_components_do_not_depend_on_a_common_shift(tmp_path, objective):
    vectors = random_path()
    found = [
        pl.principal_directions(objective, record(tmp_path / str(shift), objective.model, rows))
        for shift, rows in ((0, vectors), (1, vectors + 1e6))
    ]
    torch.testing.assert_close(found[0].vectors, found[1].vectors, rtol=0, atol=1e-9)


@pytest.mark.parametrize("convention", ["centered", "final"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_path_in_a_plane_is_recovered(tmp_path, convention, dtype):
    model = small_model().to(dtype)
    objective = objective_of(model, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    plane = torch.linalg.qr(torch.randn(42, 2, generator=generator, dtype=torch.float64))[0].T
    turns = torch.linspace(0, 5, 12, dtype=torch.float64)
    inside = torch.stack([2 * torch.cos(turns), torch.sin(turns)], 1)
    path = record(tmp_path, model, (1 + inside @ plane).to(dtype))
    found = pl.principal_directions(objective, path, convention=convention)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert sum(found.attrs["explained_variance"]) == pytest.approx(1, abs=tolerance)
    basis = found.vectors.double()
    torch.testing.assert_close(basis.T @ basis, plane.T @ plane, rtol=0, atol=tolerance)
    projected = pl.project(path, found)
    assert float(projected.distance.max()) < tolerance
    assert projected.attrs["captured"] == pytest.approx(1, abs=tolerance)
    gaps = (inside - inside[-1]).norm(dim=1)
    np.testing.assert_allclose(np.hypot(projected.alpha, projected.beta), gaps, atol=tolerance)


def test_weak_components_are_orthonormal_too(tmp_path, objective):
    scales = torch.logspace(0, -6, 6, dtype=torch.float64)
    mixing, axes = torch.linalg.qr(random_path(6, 6))[0], torch.linalg.qr(random_path(6).T)[0].T
    rows = mixing @ (scales[:, None] * axes)
    path = record(tmp_path, objective.model, torch.cat([rows, torch.zeros(1, 42)]).double())
    found = pl.principal_directions(objective, path, count=6, convention="final")
    torch.testing.assert_close(
        found.vectors @ found.vectors.T, torch.eye(6).double(), rtol=0, atol=1e-13
    )


def test_memory_is_bounded_by_blocks_of_columns(tmp_path, objective, monkeypatch):
    width = 5
    path = record(tmp_path, objective.model, random_path())
    monkeypatch.setattr(principal, "BLOCK_BYTES", 8 * len(path) * width)
    asked = []
    read = Snapshot.read

    def counted(self, row, space, start=0):
        # A row of a block: nothing but the block is behind it.
        asked.append((row.numel(), row.untyped_storage().nbytes()))
        read(self, row, space, start)

    monkeypatch.setattr(Snapshot, "read", counted)
    pl.principal_directions(objective, path)
    blocks = [pair for pair in asked if pair[1] != 8 * 42]  # the others are single vectors
    assert len(blocks) == 2 * len(path) * 9
    assert max(blocks) == (width, 8 * len(path) * width)
    assert len(asked) - len(blocks) == 2


def test_a_subset_of_snapshots_keeps_both_ends(tmp_path, objective):
    vectors = random_path(20)
    path = record(tmp_path, objective.model, vectors)
    found = pl.principal_directions(objective, path, max_snapshots=4)
    chosen = record(tmp_path / "chosen", objective.model, vectors[[0, 6, 13, 19]])
    expected = pl.principal_directions(objective, chosen)
    torch.testing.assert_close(found.vectors, expected.vectors)
    assert (found.attrs["snapshots"], found.attrs["steps"]) == (4, [0, 19])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_straight_path_has_one_component_and_rounding_is_no_second(tmp_path, dtype):
    model = small_model().to(dtype)
    objective = objective_of(model, dtype=dtype)
    line = 1e-3 * torch.linspace(0, 1, 9).double()[:, None] * random_path(1) + 1
    path = record(tmp_path, model, line.to(dtype))
    pl.principal_directions(objective, path, count=1)
    with pytest.raises(ValueError, match="at least 2 independent displacements, got 1"):
        pl.principal_directions(objective, path)


def test_a_single_snapshot_has_no_component(tmp_path, objective):
    path = record(tmp_path, objective.model, random_path(1))
    with pytest.raises(ValueError, match="at least 1 independent displacements, got 0"):
        pl.principal_directions(objective, path, count=1)


def test_bad_requests_for_components(tmp_path, objective):
    vectors = random_path()
    vectors[3, 7] = float("nan")
    path = record(tmp_path, objective.model, vectors)
    with pytest.raises(ValueError, match=r"NaN or inf in step-000000003"):
        pl.principal_directions(objective, path)
    with pytest.raises(ValueError, match="convention must be one of"):
        pl.principal_directions(objective, path, convention="uncentered")
    with pytest.raises(ValueError, match="count must be a positive integer"):
        pl.principal_directions(objective, path, count=0)
    with pytest.raises(ValueError, match="max_snapshots must be None or an integer above count"):
        pl.principal_directions(objective, path, max_snapshots=2)
    other = nn.Linear(5, 1).double()
    with pytest.raises(ValueError, match="model must be the recorded one"):
        pl.principal_directions(objective_of(other), path)


# -- projection -----------------------------------------------------------------------------------


def test_axes_of_any_length_and_angle_give_exact_coordinates(tmp_path, objective):
    generator = torch.Generator().manual_seed(4)
    axes = torch.randn(2, 42, generator=generator, dtype=torch.float64)
    axes[1] = 50 * (axes[0] + 0.1 * axes[1])  # long, and at a small angle
    normal = torch.linalg.qr(torch.cat([axes, torch.randn(1, 42, generator=generator)]).T)[0][:, 2]
    wanted = torch.tensor([[0.3, 0.0], [-1.2, 0.7], [0.0, 0.3], [0.0, 0.0]]).double()
    lifted = torch.tensor([0.0, 2.0, 0.0, 0.0]).double()
    center = torch.randn(42, generator=generator, dtype=torch.float64)
    vectors = center + wanted @ axes + lifted[:, None] * normal
    path = record(tmp_path, objective.model, vectors)
    directions = pl.Directions.from_vectors(objective.space, axes, center=center)
    projected = pl.project(path, directions)
    found = np.stack([projected.alpha, projected.beta], 1)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    np.testing.assert_allclose(projected.distance, lifted, atol=1e-12)
    np.testing.assert_allclose(projected.displacement, (vectors - center).norm(dim=1), rtol=1e-14)
    assert list(projected.step.values) == [0, 1, 2, 3]


def test_without_a_center_the_last_snapshot_is_the_origin(tmp_path, objective):
    vectors = random_path()
    path = record(tmp_path, objective.model, vectors)
    axis = vectors[0] - vectors[-1]
    projected = pl.project(path, pl.Directions.from_vectors(objective.space, axis))
    assert projected.alpha.values[[0, -1]] == pytest.approx([1, 0], abs=1e-14)
    assert set(projected.data_vars) == {"alpha", "distance", "displacement"}
    np.testing.assert_allclose(
        projected.distance**2 + (projected.alpha * float(axis.norm())) ** 2,
        projected.displacement**2,
        atol=1e-11,
    )


def test_components_explain_what_the_projection_captures(tmp_path, objective):
    path = record(tmp_path, objective.model, random_path())
    found = pl.principal_directions(objective, path, convention="final")
    projected = pl.project(path, found)
    assert projected.attrs["captured"] == pytest.approx(sum(found.attrs["explained_variance"]))
    assert projected.attrs["explained_variance"] == found.attrs["explained_variance"]


def test_losses_of_the_snapshots_and_of_their_images(tmp_path, objective):
    vectors = random_path() / 5
    path = record(tmp_path, objective.model, vectors)
    found = pl.principal_directions(objective, path)
    projected = pl.project(path, found, objective, progress=False)
    coordinates = torch.from_numpy(np.stack([projected.alpha, projected.beta], 1))
    images = vectors[-1] + coordinates @ found.vectors
    for name, points in (("loss", vectors), ("plane_loss", images)):
        expected = [objective.loss(point) for point in points]
        np.testing.assert_allclose(projected[name], expected, rtol=1e-9)
    assert projected.loss[-1] == pytest.approx(float(projected.plane_loss[-1]), rel=1e-9)
    assert not np.allclose(projected.loss, projected.plane_loss, rtol=1e-3)


@pytest.mark.parametrize("policy", ["frozen", "recompute"])
def test_the_loss_of_a_snapshot_is_with_its_own_running_statistics(tmp_path, policy):
    torch.manual_seed(5)
    data = torch.randn(32, 3).double(), torch.randn(32, 1).double()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = []
    with pl.Recorder(tmp_path).attach(model, optimizer):
        for step in range(4):
            own.append(pl.Objective(model, nn.MSELoss(), data, batchnorm=policy).loss())
            if step < 3:
                optimizer.zero_grad()
                nn.functional.mse_loss(model(data[0]), data[1]).backward()
                optimizer.step()
    objective = pl.Objective(model, nn.MSELoss(), data, batchnorm=policy)
    path = pl.Trajectory(tmp_path)
    projected = pl.project(path, pl.principal_directions(objective, path), objective)
    # The forward pass before a step moves the statistics: the snapshot after it has them.
    np.testing.assert_allclose(projected.loss, own, rtol=1e-10)


def test_bad_requests_for_projections(tmp_path, objective):
    path = record(tmp_path, objective.model, random_path())
    axis = torch.ones(42, dtype=torch.float64)
    for second in (axis * -3, torch.zeros_like(axis)):
        dependent = pl.Directions.from_vectors(objective.space, torch.stack([axis, second]))
        with pytest.raises(ValueError, match="project: directions must be linearly independent"):
            pl.project(path, dependent)
    with pytest.raises(TypeError, match="project: directions must be Directions"):
        pl.project(path, axis)
    other = pl.Directions.from_vectors(pl.ParameterSpace.from_model(nn.Linear(41, 1)), axis)
    with pytest.raises(ValueError, match="model must be the recorded one"):
        pl.project(path, other)


# -- surface and path in one call -----------------------------------------------------------------


@pytest.mark.parametrize("convention", ["centered", "final"])
def test_a_plane_in_one_call_is_that_of_its_parts(tmp_path, objective, convention):
    vectors = random_path() / 5
    path = record(tmp_path, objective.model, vectors)
    surface, found = pl.trajectory_plane(objective, path, (5, 7), convention)
    directions = pl.principal_directions(objective, path, convention=convention)
    xr.testing.assert_identical(found, pl.project(path, directions, objective))
    assert surface.loss.shape == (5, 7)
    assert surface.attrs["explained_variance"] == found.attrs["explained_variance"]
    for i, j in ((0, 0), (4, 2), (3, 6)):
        at = torch.tensor([float(surface.alpha[i]), float(surface.beta[j])], dtype=torch.float64)
        point = vectors[-1] + at @ directions.vectors
        assert surface.loss[i, j] == pytest.approx(objective.loss(point), rel=1e-9)
    assert found.attrs["loss_gap"] == pytest.approx(float(abs(found.loss - found.plane_loss).max()))
    assert found.attrs["loss_gap"] > 0


@pytest.mark.parametrize("thin", [1.0, 1e-3])
def test_the_range_of_a_plane_holds_the_path_with_room_and_is_not_thin(tmp_path, objective, thin):
    generator = torch.Generator().manual_seed(6)
    axes = torch.linalg.qr(torch.randn(42, 2, generator=generator, dtype=torch.float64))[0].T
    turns = torch.linspace(0, 6, 30, dtype=torch.float64)
    walk = torch.stack([torch.cos(turns), 0.8 * thin * torch.sin(turns)], 1) @ axes
    path = record(tmp_path, objective.model, walk)
    surface, found = pl.trajectory_plane(objective, path, 2, margin=0.25)
    sides = {}
    for name in ("alpha", "beta"):
        low, high = surface[name].values
        sides[name] = high - low
        room = min(found[name].min() - low, high - found[name].max())
        assert room >= 0.25 * np.ptp(found[name].values) * (1 - 1e-9)
    assert max(sides.values()) <= 2 * min(sides.values()) * (1 + 1e-9)
    assert sides["alpha"] == pytest.approx(1.5 * np.ptp(found.alpha.values))


def test_a_plane_needs_a_margin_that_is_a_number(tmp_path, objective):
    path = record(tmp_path, objective.model, random_path())
    for margin in (-0.1, float("nan"), "wide"):
        with pytest.raises(ValueError, match="trajectory_plane: margin must be"):
            pl.trajectory_plane(objective, path, margin=margin)
