"""From files of the published layout to the figure: as the official evaluations compute it.

Each evaluation here reads the files' names and lists by itself, in the plainest way there is, and
is given the same vectors by the image's name. So whatever an importer or a protocol leaves out,
adds or mistakes shows in the figures, or in the counts.
"""

import pickle
import re
import zlib
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_shards.alignment import REFERENCE
from data_shards.sources import crl_person, ijb, market1501, megaface, msmt17, verification_bin
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset
from launch.models.evaluate import results_table
from tests.conftest import jpeg
from tests.own_test_sets import spread
from trainer.evaluation import TestSetSettings
from trainer.evaluation.compatibility.measures import measure
from trainer.evaluation.compatibility.trials import of_dataset
from trainer.evaluation.compatibility.vectors import Embedded
from trainer.evaluation.test_sets import open_protocol
from trainer.evaluation.vectors import StoredVectors

DIMENSION = 6


def vector(key: str, whom: str) -> np.ndarray:
    """An embedding that depends on the image's name and, more, on whom it shows."""
    centre, noise = (
        np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIMENSION)
        for text in (whom, key)
    )
    return (centre + 0.9 * noise).astype(np.float32)


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def written(images, folder: Path, **tables) -> ShardDataset:
    write_dataset(images, folder, {}, tables=tables)
    return ShardDataset.open(folder)


def figures(protocol, vectors, folder, **datasets):
    """What we measure, given each image's vector by its key; `results_table` must show it all."""
    settings = TestSetSettings(
        dataset="d", protocol=protocol, distractors="e" if len(datasets) > 1 else None
    )
    test = open_protocol(settings, "cosine", **datasets)
    stored = {}
    for part, samples in test.samples().items():
        rows = np.stack([vectors[key] for key in datasets[part].keys(samples)])
        np.save(folder / f"{part}.npy", rows)
        stored[part] = StoredVectors(folder / f"{part}.npy", samples, test.normalised)
    found = test.measure(stored, spread)
    with (console := Console(width=200)).capture() as capture:
        console.print(results_table("t", found))
    shown = re.sub(r"[^\S\n│]*│[^\S\n│]*", "│", capture.get())
    parts = {f"{p} ": found[p] for p in ("raw", "cleaned")} if "raw" in found else {"": found}
    for prefix, results in parts.items():
        for name, value in results.items():
            if isinstance(value, int):
                assert f"│{prefix}{name.replace('_', ' ')}│{value:,}│" in shown
    return found


def compatibility(dataset, vectors, names):
    """The same figures by `compat`, of a model with itself."""
    rows = np.stack([vectors[key] for key in dataset.keys(np.arange(len(dataset)))])
    model, trials = Embedded(np.arange(len(dataset)), rows), of_dataset(dataset)
    points = trials.points(names)
    outcome = measure(trials, model, model, points)
    ones = np.ones((1, len(trials.identities)), dtype=np.int64)
    return [float(outcome.figure(point).values(ones)[0]) for point in points], trials


def re_identification(query, gallery, vectors):
    """Rank-1, mAP, mINP, skipped and dropped, of (key, person, camera); gallery person 0: nobody.

    Zheng et al. 2015: images of the query's person *and* camera are passed over, all others that
    are in the gallery are ranked.
    """
    first, precision, penalty, skipped, dropped = [], [], [], 0, 0
    matrix = unit([vectors[key] for key, _, _ in gallery])
    for key, person, camera in query:
        distance = ((matrix - unit(vectors[key])) ** 2).sum(axis=1)
        hits = []
        for place in np.argsort(distance, kind="stable"):
            _, other, seen_by = gallery[place]
            if other == person and seen_by == camera:
                dropped += 1
                continue
            hits.append(other == person)
        if not any(hits):
            skipped += 1
            continue
        ranks = np.flatnonzero(hits) + 1
        first.append(hits[0])
        precision.append(np.mean([(n + 1) / rank for n, rank in enumerate(ranks)]))
        penalty.append(len(ranks) / ranks[-1])
    return np.mean(first), np.mean(precision), np.mean(penalty), skipped, dropped


def lay(root: Path, names) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(number, 0))


def market_files(distractors: int) -> list[str]:
    """People 1 to 12 in 3 cameras, two images each; 13 is nowhere but in one query."""
    seen = [(person, camera) for person in range(1, 13) for camera in range(1, 4)]
    names = [f"query/{p:04d}_c{c}s1_000151_00.jpg" for p, c in [*seen[::2], (13, 1)]]
    names += [f"bounding_box_test/{p:04d}_c{c}s1_{n:06d}_01.jpg" for p, c in seen for n in (7, 9)]
    names += [f"bounding_box_test/0000_c{n % 3 + 1}s2_{n:06d}_05.jpg" for n in range(distractors)]
    names += [f"bounding_box_test/-1_c{n % 3 + 1}s3_{n:06d}_00.jpg" for n in range(5)]
    return [*names, *(f"bounding_box_train/0900_c{c}s1_000001_01.jpg" for c in (1, 2))]


def market_entries(names, source, folder):
    """(key, person, camera) of a folder, junk left out."""
    found = []
    for name in sorted(n for n in names if n.startswith(f"{folder}/")):
        person, camera = re.match(r"(-?\d+)_c(\d)", Path(name).name).groups()
        if person != "-1":
            found.append((f"{source}/{name}", int(person), camera))
    return found


def msmt_files(root: Path):
    lists = {
        name: [
            f"{p:04d}/{p:04d}_{n:03d}_{c:02d}_0303morning_{name}_{n}.jpg {p}"
            for p in range(people)
            for n, c in enumerate(cameras)
        ]
        for name, people, cameras in (
            ("train", 3, (1, 2)),
            ("val", 2, (3,)),
            ("query", 10, (5, 6)),
            ("gallery", 9, (5, 7, 8)),
        )
    }
    for name, lines in lists.items():
        folder = "mask_train_v2" if name in ("train", "val") else "mask_test_v2"
        lay(root / folder, [line.split()[0] for line in lines])
        (root / f"list_{name}.txt").write_text("\n".join(lines) + "\n")

    def entries(name):
        parts = [line.split() for line in lists[name]]
        return [
            (f"msmt17/mask_test_v2/{path}", int(person) + 1, path.split("_")[2])
            for path, person in parts
        ]

    read = msmt17.read_msmt17(msmt17.Msmt17Settings(path=root))
    return read, entries("query"), entries("gallery")


def crl_person_files(root: Path):
    """As its authors distribute it; people are numbered from 0."""
    names = [f"train/{p:04d}_0_01_000.jpg" for p in range(3)]
    names += [f"query/{p:04d}_1_{c:02d}_000.jpg" for p in range(9) for c in (1, 2)]
    names += [f"gallery/{p:04d}_2_{c:02d}_000.jpg" for p in range(8) for c in (1, 3, 4)]
    lay(root / "MIX", names)

    def entries(part):
        listed = [n for n in names if n.startswith(f"{part}/")]
        fields = [(n, *Path(n).stem.split("_")) for n in listed]
        return [(f"crl_person/{n}", int(p) + 1, camera) for n, p, _, camera, _ in fields]

    read = crl_person.read_crl_person(crl_person.CrlPersonSettings(path=root))
    return read, entries("query"), entries("gallery")


def market_like(source, read, settings, distractors):
    def files(root: Path):
        names = market_files(distractors)
        lay(root, names)
        sides = (market_entries(names, source, f) for f in ("query", "bounding_box_test"))
        return read(settings(path=root)), *sides

    return files


RE_ID = {
    "market1501": market_like(
        "market1501", market1501.read_market1501, market1501.Market1501Settings, 40
    ),
    "dukemtmc": market_like("dukemtmc", market1501.read_duke, market1501.DukeSettings, 0),
    "msmt17": msmt_files,
    "crl_person": crl_person_files,
}


@pytest.mark.reliability(
    1, "re-id sets give the official figures and counts; Market-1501's distractors are searched"
)
@pytest.mark.parametrize("source", RE_ID)
def test_re_identification_is_the_official_evaluation(tmp_path, source):
    images, query, gallery = RE_ID[source](tmp_path / "raw")
    dataset = written(images, tmp_path / "d")
    # a distractor looks like somebody, but is nobody
    every = [*query, *gallery]
    vectors = {key: vector(key, f"{person or int(key[-12]) % 9}") for key, person, _ in every}
    found = figures("retrieval", vectors, tmp_path, dataset=dataset)
    top1, mean_ap, inverse, skipped, dropped = re_identification(query, gallery, vectors)
    assert found["top1"] == pytest.approx(top1)
    assert found["map"] == pytest.approx(mean_ap)
    assert found["minp"] == pytest.approx(inverse)
    assert found["gallery"] == len(gallery)
    assert found["distractors"] == sum(person == 0 for _, person, _ in gallery)
    assert (found["queries"], found["queries_without_match"]) == (len(query), skipped)
    assert found["dropped_by_camera"] == dropped > 0
    assert 0 < skipped < len(query) and 0 < mean_ap < 1
    every = {
        key: vectors.get(key, vector(key, "trained"))
        for key in dataset.keys(np.arange(len(dataset)))
    }
    ours, trials = compatibility(dataset, every, ["top1", "map"])
    assert ours == pytest.approx([top1, mean_ap])
    assert len(trials.search.gallery) == len(gallery)


@pytest.mark.reliability(1, "a search in which no query can find anything is refused, not 0 %")
def test_a_search_without_anything_to_find_is_refused(tmp_path):
    names = [n for n in market_files(4) if "_c1" in n]
    lay(tmp_path / "raw", names)
    settings = market1501.Market1501Settings(path=tmp_path / "raw")
    dataset = written(market1501.read_market1501(settings), tmp_path / "d")
    with pytest.raises(ValueError, match=r"no query .* by another camera in the gallery"):
        figures("retrieval", {}, tmp_path, dataset=dataset)


def faces_bin(path: Path, pairs: int) -> list[bool]:
    same = [number % 2 == 0 for number in range(pairs)]
    content = ([jpeg(number, 0) for number in range(2 * pairs)], same)
    path.write_bytes(pickle.dumps(content))
    return same


@pytest.mark.reliability(1, "LFW's accuracy is that of the usual evaluation, from the .bin file on")
def test_lfw_is_insightfaces_verification(tmp_path):
    """`evaluate` of its verification.py: thresholds 0 to 4 by 0.01, KFold without shuffling."""
    same = np.array(faces_bin(tmp_path / "lfw.bin", 60))
    settings = verification_bin.VerificationBinSettings(path=tmp_path / "lfw.bin")
    tables = verification_bin.verification_bin_tables(settings)
    dataset = written(verification_bin.read_verification_bin(settings), tmp_path / "d", **tables)
    keys = [f"{n:06d}" for n in range(120)]
    vectors = {k: vector(k, f"{n // 2 if same[n // 2] else n + 1000}") for n, k in enumerate(keys)}
    found = figures("verification", vectors, tmp_path, dataset=dataset)
    matrix = unit([vectors[key] for key in keys])
    distance = ((matrix[::2] - matrix[1::2]) ** 2).sum(axis=1)
    accuracies = []
    for fold in range(10):
        held = np.arange(60) // 6 == fold
        best = max(
            np.arange(0, 4, 0.01), key=lambda t: np.mean((distance < t)[~held] == same[~held])
        )
        accuracies.append(np.mean((distance < best)[held] == same[held]))
    assert found["accuracy"] == pytest.approx(np.mean(accuracies))
    assert found["tar"]["0.1"] == pytest.approx(accepted(-distance, same, 0.1))
    assert (found["pairs"], found["pairs_of_refused_images"]) == (60, 0)


def accepted(score, genuine, rate) -> float:
    """The largest share of genuine scores accepted with at most `rate` of the others."""
    able = [t for t in score if np.mean(score[~genuine] >= t) <= rate * (1 + 1e-9)]
    return max((np.mean(score[genuine] >= t) for t in able), default=0.0)


@pytest.mark.reliability(1, "MegaFace's rank-1 and counts are its protocol's, raw and cleaned")
def test_megaface_is_every_ordered_pair_among_all_distractors(tmp_path):
    probes = [f"Person {p}/Person_{p}_{n}.jpg" for p in range(5) for n in range(4)]
    others = [f"{n % 3}/{n}@N0/{n}_0.jpg" for n in range(60)]
    lay(tmp_path / "facescrub", [*probes, "Alone/Alone_1.jpg"])
    lay(tmp_path / "megaface", others)
    (tmp_path / "noise.txt").write_text(f"{Path(probes[0]).name}\n")
    facescrub = megaface.FacescrubSettings(
        path=tmp_path / "facescrub", noise=tmp_path / "noise.txt"
    )
    million = megaface.MegafaceSettings(path=tmp_path / "megaface")
    datasets = {
        "dataset": written(
            megaface.read_facescrub(facescrub),
            tmp_path / "p",
            **megaface.facescrub_tables(facescrub),
        ),
        "distractors": written(megaface.read_megaface(million), tmp_path / "d"),
    }
    vectors = {f"facescrub/{n}": vector(n, n.split("/")[0]) for n in [*probes, "Alone/Alone_1.jpg"]}
    vectors |= {f"megaface/{n}": vector(n, f"Person {k % 9}") for k, n in enumerate(others)}
    found = figures("identification", vectors, tmp_path, **datasets)
    strangers = unit([vectors[f"megaface/{n}"] for n in others])
    for kind, names in (("raw", probes), ("cleaned", probes[1:])):
        ranks = []
        for a, b in permutations(names, 2):
            if a.split("/")[0] != b.split("/")[0]:
                continue
            asked, mate = (unit(vectors[f"facescrub/{n}"]) for n in (a, b))
            ranks.append(1 + np.sum(strangers @ asked >= mate @ asked))
        results = found[kind]
        assert results["rank1"] == pytest.approx(np.mean(np.array(ranks) == 1))
        assert results["cmc"][9] == pytest.approx(np.mean(np.array(ranks) <= 10))
        assert (results["trials"], results["distractors"]) == (len(ranks), 60)
        assert (results["probes"], results["probes_without_mate"]) == (len(names) + 1, 1)
        assert 0 < results["rank1"] < 1


def ijb_files(root: Path) -> dict[str, list]:
    """Person p has templates 10 + p (enrolled: two media) and 100 + p and 200 + p (probes).

    People from 8 on are enrolled nowhere. An enrolled image is in a probe template, too.
    """
    faces = []  # name, template, medium
    for person in range(12):
        for number, medium in enumerate((1, 1, 2)):
            faces.append((f"{person}_{number}.jpg", 10 + person, 1000 * person + medium))
        faces.append((f"{person}_3.jpg", 100 + person, 1000 * person + 3))
        faces.append((f"{person}_0.jpg", 200 + person, 1000 * person + 1))
        faces.append((f"{person}_4.jpg", 200 + person, 1000 * person + 4))
    names = sorted({name for name, _, _ in faces})
    lay(root / "loose_crop", names)
    meta = root / "meta"
    meta.mkdir()
    marks = " ".join(map(str, REFERENCE.ravel()))
    (meta / "ijbc_name_5pts_score.txt").write_text("".join(f"{n} {marks} 0.9\n" for n in names))
    (meta / "ijbc_face_tid_mid.txt").write_text("".join(f"{n} {t} {m}\n" for n, t, m in faces))
    pairs = [(10 + a, 100 + b, int(a == b)) for a in range(12) for b in range(12)]
    (meta / "ijbc_template_pair_label.txt").write_text(
        "".join(f"{a} {b} {s}\n" for a, b, s in pairs)
    )
    parts = {
        "gallery_G1": [(10 + p, p) for p in range(4)],
        "gallery_G2": [(10 + p, p) for p in range(4, 8)],
        "probe_mixed": [(base + p, p) for p in range(12) for base in (100, 200)],
    }
    for part, listed in parts.items():
        lines = "".join(f"{t},{s},{n}\n" for t, s in listed for n, at, _ in faces if at == t)
        (meta / f"ijbc_1N_{part}.csv").write_text(f"TEMPLATE_ID,SUBJECT_ID,FILENAME\n{lines}")
    return {"faces": faces, "pairs": pairs, **parts}


@pytest.mark.reliability(
    3, "images enter a template with the length that the model gave them, as is usual for IJB"
)
def test_ijb_is_the_official_1_to_1_and_1_to_n_evaluation(tmp_path):
    """Embeddings as the model gives them: their length weighs within a template."""
    files = ijb_files(tmp_path / "raw")
    settings = ijb.IjbSettings(path=tmp_path / "raw")
    images = ijb.read_ijb(settings, 0, 0)
    dataset = written(images, tmp_path / "d", **ijb.ijb_tables(settings))
    vectors = {
        f"ijbc/{n}": vector(n, n.split("_")[0]) * (1 + k % 3)
        for k, n in enumerate(sorted({name for name, _, _ in files["faces"]}))
    }
    found = figures("templates", vectors, tmp_path, dataset=dataset)
    templates = {}
    for template in {t for _, t, _ in files["faces"]}:
        media = {}
        for name, at, medium in files["faces"]:
            if at == template:
                media.setdefault(medium, []).append(vectors[f"ijbc/{name}"])
        templates[template] = unit(np.sum([np.mean(m, axis=0) for m in media.values()], axis=0))
    score = np.array([templates[a] @ templates[b] for a, b, _ in files["pairs"]])
    same = np.array([s for _, _, s in files["pairs"]], dtype=bool)
    assert found["tar"]["0.1"] == pytest.approx(accepted(score, same, 0.1))
    assert (found["pairs"], found["templates"]) == (144, 36)
    tpir, rank1 = [], []
    for gallery in (files["gallery_G1"], files["gallery_G2"]):
        enrolled = np.array([templates[t] for t, _ in gallery])
        people = [s for _, s in gallery]
        best = {}
        for template, subject in files["probe_mixed"]:
            scores = enrolled @ templates[template]
            best[template] = subject, people[scores.argmax()], scores.max()
        mated = np.array([subject in people for subject, _, _ in best.values()])
        right = np.array([subject == given for subject, given, _ in best.values()])
        top = np.array([scored for _, _, scored in best.values()])
        rank1.append(right[mated].mean())
        levels = [t for t in top if np.mean(top[~mated] >= t) <= 0.1]
        tpir.append(max(np.sum(right & mated & (top >= t)) for t in levels) / mated.sum())
    assert found["rank1"] == pytest.approx(np.mean(rank1))
    assert found["tpir"]["0.1"] == pytest.approx(np.mean(tpir))
    assert (found["probes"], found["galleries"]) == (24, 2)
    assert (found["enrolled"], found["probes_without_mate"]) == (8, 32)
    assert found["images_refused"] == found["templates_of_refused_images"] == 0
    assert found["pairs_of_refused_images"] == found["searched_of_refused_images"] == 0
    ours, _ = compatibility(dataset, vectors, ["tar@0.1", "tpir@0.1", "top1"])
    assert ours == pytest.approx([found["tar"]["0.1"], found["tpir"]["0.1"], found["rank1"]])
