"""Volumes as other libraries read them: nibabel, pynrrd, and for MetaImage a reader written from
https://itk.org/Wiki/ITK/MetaIO/Documentation. None of them shares code with data_prep or ITK."""

from __future__ import annotations

import dataclasses
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

LPS = np.diag([-1.0, -1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Second:
    """f64[I, J, K] voxels, and the f64[3, 4] matrix from index to LPS in mm."""

    values: np.ndarray
    affine: np.ndarray


def second_reading(path: Path) -> Second:
    """The file or series as an independent reader reads it, whatever it is called."""
    if path.is_dir():
        return by_pydicom(path)
    content = path.read_bytes()
    if content.startswith(b"NRRD"):
        return by_pynrrd(path)
    if content[:2] != b"\x1f\x8b" and b"ElementDataFile" in content[: 1 << 16]:
        return by_metaimage_page(path)
    return by_nibabel(path)


def by_nibabel(path: Path) -> Second:
    """nibabel knows formats by names: give it bytes instead."""
    import gzip
    import io

    import nibabel as nib

    def plain(file: Path) -> io.BytesIO:
        content = file.read_bytes()
        return io.BytesIO(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)

    head = plain(path).read(348)
    if head[344:348] == b"n+1\0":
        image = nib.Nifti1Image.from_bytes(plain(path).getvalue())
    else:
        halves = {"hdr": path, "img": path}
        for other in path.parent.iterdir():
            for half in halves:
                if f".{half}" in other.name.lower():
                    halves[half] = other
        files = {
            name: nib.FileHolder(fileobj=plain(halves[half]))
            for name, half in (("header", "hdr"), ("image", "img"))
        }
        image = nib.Nifti1Pair.from_file_map(files)
    values = np.asanyarray(image.dataobj).astype(np.float64)
    return Second(values.reshape(values.shape[:3]), LPS @ image.affine[:3])


def by_pynrrd(path: Path) -> Second:
    import nrrd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values, header = nrrd.read(str(path), index_order="F")
    turn = {"left": 1.0, "right": -1.0, "posterior": 1.0, "anterior": -1.0, "superior": 1.0}
    short = {"L": "left", "R": "right", "P": "posterior", "A": "anterior", "S": "superior"}
    space = header["space"]
    words = space.split("-") if "-" in space else [short[letter] for letter in space.upper()]
    signs = np.array([turn[word.lower()] for word in words])
    columns = np.column_stack([np.array(header["space directions"]).T, header["space origin"]])
    return Second(values.astype(np.float64), signs[:, None] * columns)


def by_metaimage_page(path: Path) -> Second:
    content = path.read_bytes()
    fields: dict[str, str] = {}
    at = 0
    while "ElementDataFile" not in fields:
        end = content.find(b"\n", at)
        end = len(content) if end < 0 else end
        key, _, value = content[at:end].decode("latin-1").partition("=")
        fields[key.strip()] = value.strip()
        at = end + 1
    data = content[at:]
    if fields["ElementDataFile"] != "LOCAL":
        data = (path.parent / fields["ElementDataFile"]).read_bytes()
    if fields.get("CompressedData", "False").lower() in ("true", "1"):
        data = zlib.decompressobj(47).decompress(data)
    kinds = {
        "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4",
        "LONG": "i4", "ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4",
        "DOUBLE": "f8",
    }  # fmt: skip
    msb = fields.get("ElementByteOrderMSB", fields.get("BinaryDataByteOrderMSB", "False"))
    order = ">" if msb.lower() in ("true", "1") else "<"
    kind = np.dtype(order + kinds[fields["ElementType"].removeprefix("MET_")])
    sizes = [int(float(word)) for word in fields["DimSize"].split()]
    values = np.frombuffer(data, kind, int(np.prod(sizes))).reshape(sizes[:3], order="F")

    def numbers(*names: str) -> np.ndarray:
        (name,) = [name for name in names if name in fields]
        return np.array([float(word) for word in fields[name].split()])

    rank = len(sizes)
    rows = numbers("TransformMatrix", "Rotation", "Orientation").reshape(rank, rank)[:3, :3]
    steps = rows.T * numbers("ElementSpacing", "ElementSize")[:3]
    origin = numbers("Offset", "Position", "Origin")[:3]
    return Second(values.astype(np.float64), np.column_stack([steps, origin]))


def by_pydicom(folder: Path) -> Second:
    """A series of plain slices, sorted along their normal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slices = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
        planes = [
            one.pixel_array * np.float64(one.get("RescaleSlope", 1))
            + float(one.get("RescaleIntercept", 0))
            for one in slices
        ]
    row, column = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(row, column)
    places = np.array([one.ImagePositionPatient for one in slices], float)
    order = np.argsort(places @ normal)
    first, last = places[order[0]], places[order[-1]]
    height, width = (float(x) for x in slices[0].PixelSpacing)
    step = normal * np.dot(last - first, normal) / (len(slices) - 1)
    values = np.stack([planes[i] for i in order]).transpose(2, 1, 0)
    return Second(values, np.column_stack([row * width, column * height, step, first]))


def assert_same(image: sitk.Image, second: Second, corner_mm: float = 0.01) -> None:
    """Voxels are equal (up to the rounding of f32 where the header scales them); corners of the
    volume lie within `corner_mm` of each other, and so do neighbours of the first corner."""
    ours = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    assert ours.shape == second.values.shape
    np.testing.assert_array_equal(
        ours.astype(np.float64), second.values.astype(ours.dtype).astype(np.float64)
    )
    turn = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine = np.column_stack([turn, image.GetOrigin()])
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(ours.shape) - 1)
    places = [np.column_stack([corners, np.ones(8)]) @ a.T for a in (affine, second.affine)]
    assert np.linalg.norm(places[0] - places[1], axis=1).max() <= corner_mm
