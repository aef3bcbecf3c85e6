"""NRRD and MetaImage files: each voxel at its place, and nothing read that should not be."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import layouts
import nibabel as nib
import numpy as np
import pytest
from layouts import SHAPE, change, labels, noise, write_itk, write_nifti

from trm_bench.datasets import volume
from trm_bench.datasets.nnunet import NnUNet
from trm_bench.errors import BadSubject, UserError

sitk = pytest.importorskip("SimpleITK", reason="the extra sitk is not installed")
pytestmark = pytest.mark.parametrize("ending", [".nrrd", ".mha"])


def dataset(root: Path, ending: str) -> NnUNet:
    return NnUNet(layouts.nnunet(root, channels=["CT"], ending=ending))


def image_file(root: Path, ending: str) -> Path:
    return root / "imagesTr" / f"case_001_0000{ending}"


def fault(of: NnUNet) -> BadSubject:
    with pytest.raises(BadSubject) as caught:
        of.read(of.subjects()[0], of.modalities)
    return caught.value


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "ILA"])
def test_a_voxel_is_where_itk_itself_says(axes: str, ending: str, tmp_path: Path) -> None:
    """ITK's own map from index to world, in LPS, is the independent computation."""
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(axes), SHAPE)
    affine = np.array([[1.5, 0, 0, -7], [0, 2, 0, 8], [0, 0, 3, 9], [0, 0, 0, 1]]) @ affine
    of, image = dataset(tmp_path, ending), noise(5)
    write_itk(image_file(tmp_path, ending), image, affine)
    write_itk(tmp_path / "labelsTr" / f"case_001{ending}", labels((0, 1, 2, 3)), affine)
    written = sitk.ReadImage(str(image_file(tmp_path, ending)))
    scan = of.read(of.subjects()[0], ("ct",))
    assert "".join(nib.aff2axcodes(scan.affine)) == "RAS"
    inverse = np.linalg.inv(scan.affine)
    for index in itertools.product(*((0, 2, n - 1) for n in SHAPE)):
        left, back, up = written.TransformIndexToPhysicalPoint(index)
        ours = tuple(np.rint(inverse @ [-left, -back, up, 1])[:3].astype(int))
        assert scan.image[(0, *ours)] == written.GetPixel(index) == image[index]
    np.testing.assert_allclose(sorted(scan.spacing), (1.5, 2, 3))


def test_formats_may_be_mixed_on_one_grid(ending: str, tmp_path: Path) -> None:
    """The same volume as NIfTI and by ITK is one grid: the two ways agree on left and right."""
    dataset(tmp_path, ending)
    content = {"one": {"images": [f"imagesTr/case_001_0000{ending}"], "label": "label.nii.gz"}}
    write_nifti(tmp_path / "label.nii.gz", labels((0, 1, 2, 3)))
    of = NnUNet(change(tmp_path, dataset=content, numTraining=1))
    scan = of.read(of.subjects()[0], ("ct",))
    np.testing.assert_array_equal(scan.image[0], noise(0)[::-1, ::-1])
    np.testing.assert_array_equal(scan.label, labels((0, 1, 2, 3))[::-1, ::-1])
    np.testing.assert_array_equal(scan.grid.put_back(scan.image[0]), noise(0))
    np.testing.assert_allclose(scan.grid.affine, layouts.LPS)


@pytest.mark.parametrize("kind", ["i2", "u2", "f8"])
def test_the_kind_of_voxels_does_not_matter(kind: str, ending: str, tmp_path: Path) -> None:
    of = dataset(tmp_path, ending)
    write_itk(image_file(tmp_path, ending), noise(0).astype(kind))
    image = of.read(of.subjects()[0], ("ct",)).image
    np.testing.assert_array_equal(image[0], noise(0).astype(kind)[::-1, ::-1])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("keep", [0.02, 0.6, 0.97])
def test_a_truncated_file_is_told(
    compressed: bool, keep: float, ending: str, tmp_path: Path
) -> None:
    of, file = dataset(tmp_path, ending), image_file(tmp_path, ending)
    sitk.WriteImage(sitk.ReadImage(str(file)), str(file), useCompression=compressed)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep)])
    error = fault(of)
    assert ("cannot be read" in error.what) or ("is truncated" in error.what)
    assert error.where == str(file)


def test_sizes_are_bounded_before_memory_is_reserved(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, file = dataset(tmp_path, ending), image_file(tmp_path, ending)
    whole = file.read_bytes()
    for old, new in (
        (b"sizes: 4 5 6", b"sizes: 40000 50000 6000"),
        (b"= 4 5 6", b"= 40000 50000 6000"),
    ):
        whole = whole.replace(old, new)
    file.write_bytes(whole)
    assert "is truncated: shape (40000, 50000, 6000)" in fault(of).what
    monkeypatch.setattr(volume, "MOST_VOXELS", 100)
    write_itk(file, noise(0))
    assert "more than 100 voxels" in fault(of).what


def test_voxels_in_another_file_are_refused(ending: str, tmp_path: Path) -> None:
    of, file = dataset(tmp_path, ending), image_file(tmp_path, ending)
    raw = tmp_path / "outside.raw"
    raw.write_bytes(noise(0).T.tobytes())
    if ending == ".nrrd":
        heads = [f"data file: {raw}", f"DataFile:{raw}", f"data file: LIST\n{raw}"]
        head = "NRRD0004\ntype: float\ndimension: 3\nsizes: 4 5 6\nendian: little\nencoding: raw\n"
    else:
        heads = [f"ElementDataFile = {raw}", f"elementdatafile : {raw}", "ElementDataFile = LIST"]
        head = "ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\nElementType = MET_FLOAT\n"
    for line in heads:
        file.write_text(f"{head}{line}\n\n")
        assert "voxels are in another file" in fault(of).what


def test_other_voxels_and_shapes_are_refused(ending: str, tmp_path: Path) -> None:
    of, file = dataset(tmp_path, ending), image_file(tmp_path, ending)
    for image, says in (
        (sitk.Image(4, 5, sitk.sitkInt16), "not one 3D volume"),
        (sitk.Image([4, 5, 6, 2], sitk.sitkInt16), "split its fourth axis"),
        (sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), "vector of 8-bit unsigned integer"),
    ):
        sitk.WriteImage(image, str(file))
        assert says in fault(of).what
    file.write_bytes(b"<html>" * 99)
    assert "it has no header" in fault(of).what


def test_a_label_without_axes_lies_on_the_image_grid(ending: str, tmp_path: Path) -> None:
    of = dataset(tmp_path, ending)
    file = tmp_path / "labelsTr" / f"case_001{ending}"
    voxels = labels((0, 1, 2, 3)).T.tobytes()
    if ending == ".nrrd":
        head = (
            "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 5 6\nspacings: 1 1 {}\nencoding: raw\n\n"
        )
    else:
        head = "ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\nElementSpacing = 1 1 {}\n"
        head += "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    file.write_bytes(head.format(1).encode() + voxels)
    label = of.read(of.subjects()[0], ("ct",)).label
    np.testing.assert_array_equal(label, labels((0, 1, 2, 3))[::-1, ::-1])
    file.write_bytes(head.format(2).encode() + voxels)
    assert "affine of the label differs" in fault(of).what


def test_without_simpleitk_the_extra_is_named(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = dataset(tmp_path, ending)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(UserError, match=r"trm-bench\[sitk\]") as caught:
        of.read(of.subjects()[0], ("ct",))
    assert not isinstance(caught.value, BadSubject)


def test_damaged_bytes_never_end_the_process(ending: str, tmp_path: Path) -> None:
    """ITK is native code: what it does about damage is tried in a process of its own."""
    dataset(tmp_path, ending)
    code = """
import sys, random
from pathlib import Path
from trm_bench.datasets.nnunet import NnUNet
from trm_bench.errors import BadSubject
of, file, draws = NnUNet(Path(sys.argv[1])), Path(sys.argv[2]), random.Random(0)
whole, refused = file.read_bytes(), 0
for _ in range(300):
    data = bytearray(whole)
    for _ in range(draws.randint(1, 4)):
        data[draws.randrange(min(len(data), 500))] = draws.randrange(256)
    file.write_bytes(data)
    try:
        of.read(of.subjects()[0], ("ct",))
    except BadSubject as error:
        refused += 1
        assert str(file) in str(error) or "labelsTr" in str(error)
print(refused)
"""
    file = image_file(tmp_path, ending)
    command = [sys.executable, "-c", code, str(tmp_path), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.splitlines()[-1]) > 30
