"""Varied texts on which tokenizers are compared with independent implementations."""

from __future__ import annotations

import hashlib
import random

from paths import SHARED

WRITTEN = (
    "Once upon a time, there was a little girl named Lily.",
    "The quick brown fox jumps over the lazy dog. THE QUICK BROWN FOX! tHe qUiCk bRoWn fOx?",
    "I've been told he's there; they'll say we'd better go. I'M SURE YOU'RE RIGHT, DON'T THEY'VE 'S 'T 'LL",
    "It’s the typographer’s apostrophe: don’t, we’ll, I’m — “quoted” ‘twice’ … and ‹so› «on»",
    "Les élèves français étaient déjà là; l'été, où êtes-vous? Ça, c'est ÉVIDENT.",
    "Größe, Straße, Übermut, Äpfel, naïve façade, smørrebrød, Škoda, Łódź, Győr, İstanbul, ığdır",
    "Съешь ещё этих мягких французских булок, да выпей чаю. ПРОПИСНЫЕ",
    "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία. ΑΒΓ αβγ",
    "האם אתה מדבר עברית? שָׁלוֹם עֲלֵיכֶם",
    "هل تتحدث العربية؟ السَّلامُ عَلَيْكُم ١٢٣٤٥ ۱۲۳۴۵",
    "क्या आप हिन्दी बोलते हैं? नमस्ते १२३४ दिलाई",
    "আপনি কি বাংলা বলেন? தமிழ் பேசுகிறீர்களா? తెలుగు ಕನ್ನಡ മലയാളം",
    "คุณพูดภาษาไทยได้ไหม ๑๒๓ ລາວ ខ្មែរ မြန်မာ",
    "你会说中文吗？我想在apple工作1314151天～ 繁體字與简体字。",
    "日本語を話しますか？カタカナとひらがな、漢字。ｱｲｳ ＡＢＣ １２３",
    "한국어를 할 수 있나요? 안녕하세요 ㅋㅋㅋ",
    "ქართული Հայերեն አማርኛ ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ བོད་ཡིག",
    "🚀 🦙🦙 😶‍🌫️ 👩‍👩‍👧‍👦 🇩🇪🇫🇷 👍🏽 ❤️ ✅ ½ ⅓ ² ³ ⁴ ₅ Ⅷ ① ℃ № ™",
    "e\u0301 é n\u0303 ñ a\u0308\u0323 Ä A\u0308 \ufb01 ﬁ ſ K",
    "Z\u0337\u0351a\u0334\u030dl\u0335\u0310g\u0336\u0357o\u0338\u0311 tex\u0300\u0301\u0302\u0303t",
    "0 1 12 123 1234 12345 123456 1234567890 3.14159 1e-10 0x1F 1,234,567.89 50% $9.99 #1 1st 2nd 007",
    "٣٫١٤ ᠑᠒᠓ 万千百十 Ⅻ ⅻ 12月31日 10:45:59 2024-02-29T23:59:60Z +49 (0)30 901820",
    "def f(x: int) -> list[int]:\n    return [i ** 2 for i in range(x) if i % 2 == 0]  # squares\n",
    '#include <stdio.h>\nint main(void) {\n\tprintf("%d\\n", 1<<3);\n\treturn 0;\n}\n',
    "SELECT a.*, COUNT(*) FROM t AS a WHERE a.x >= 10 AND b != 'it''s' GROUP BY 1;",
    '{"key": [1, 2.5e3, null, true], "nested": {"a\\u00e9": "\\n"}}',
    '<div class="x"><p>Hello &amp; bye</p></div><!-- c --><br/>',
    "https://example.com/path/to?query=1&b=%20#frag user.name+tag@mail.example.org C:\\Users\\x\\file.txt",
    "~~~ === --- ___ *** ### @@@ !!! ??? ... ;;; ::: ,,, |||| \\\\\\ //// ((([[[{{{<<<>>>}}}]]])))",
    "→ ← ↑ ↓ ⇒ ∀x∈ℝ: ∃y ∑∏∫√∞≈≠≤≥±×÷ αβγδ ∂/∂t │┤╡╢ ░▒▓█ ♠♣♥♦ ♪",
    "$ ^ ~ ` + < > = | \\ ` ´ ¨ ¬ § ¶ © ® ° € £ ¥ ¢ ₿",
    "a b\u00a0c\u2003d\u3000e\u200bf\u2028g\u2029h\u0085i\u1680j\u202fk\ufeffl",
    "word\n\nword\n\n\nword\r\nword\r\n\r\nword\rword\n \n word \n  \n   word\n\t\n\t\tword",
    "trailing spaces   ",
    "trailing newline\n",
    "trailing newlines\n\n\n",
    " leading",
    "   leading three",
    "\tleading tab",
    "\n\nleading newlines",
    "x  y   z    1     2      !       ?        (         \n          w",
    "\t\t\tif (a\t== b)\t{\n\t\t\t\tgo();\n\t\t\t}\n",
    "\u0000\u0001\u0002\u0007\u0008\u000b\u000c\u001b[31mred\u001b[0m\u007f\u0080\u009f",
    "▁literal ▁▁ lower one eighth block▁",
    "ĠGPT-2's Ġown ĊaliasesĠ",
    "<0x0A><0xE2>[UNK][CLS]<unk_token><|nothing|><s_>",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "Pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism",
    "camelCaseIdentifier PascalCase snake_case_name SCREAMING_SNAKE kebab-case-name HTTPServer2Go iOS17",
    # Words that Llama 3 has as tokens and does not reach by merging.
    "Tại Việt Nam việc này nhiều; değiş geliştir merkez ایران اطلاعات характер розвитку využít každý .:.:.:.:.:.:.:.:",
    "hahahahahahaha aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa zzzzzz ======= -------- ........ !!!!!!!!!!!!!",
    "a",
    " ",
    "",
)

# Whitespace runs of every length up to beyond the longest token there is for one.
RUNS = tuple(before + character * count + after
             for character in (" ", "\n", "\t", "=", "-")
             for count in (2, 3, 5, 8, 13, 31, 33, 70)
             for before, after in (("", ""), ("a", "b")))  # fmt: skip

# Texts with control tokens of the vocabularies in them, for tests of `parse_special`.
CONTROL = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi there!<|eot_id|>",
    "before <|eot_id|> after<|end_of_text|>",
    "<bos><|turn>user\nHi <eos> there<turn|>\n<|turn>model\n",
    "a<eos>b <pad> <unk>  <mask>\n",
    "<s> [INST] hello [/INST] <s>again <unk>",
    "<|im_start|>system\nYou are.<|im_end|>\n<|endoftext|>",
    "<|user|>\nHi<|end|>\n<|assistant|>\n",
    "<|end_story|>Once<|start_story|> upon",
    "<start_of_turn>user\nTell me a story<end_of_turn>\n<start_of_turn>model\n",
)

# Letters, marks, digits and signs that every engine's Unicode tables have known for long.
_BLOCKS = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    " \t\n\r",
    "'\"!?.,:;-_()[]{}<>/\\|@#$%^&*+=~`",
    "àâçéèêëîïôûùüÿñæœßåøäöÀÉÖÜ",
    "абвгдежзийклмнопрстуфхцчшщъыьэюяАБВ",
    "αβγδεζηθικλμνξοπρστυφχψωΩ",
    "אבגדהוזחטיכלמנסעפצקרשת",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "कखगघचछजझटठडढतथदधनपफबभमयरलवशषसहािीुूेैोौ्",
    "กขคงจฉชซญฎดตถทธนบปผพฟมยรลวศสหอาิีึืุู่้",
    "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而",
    "あいうえおかきくけこさしすせそアイウエオカキクケコ",
    "가나다라마바사아자차카타파하",
    "😀😂🤣😍🙏🔥🚀🎉🌍👍💯🐍",
    "–—…“”‘’•·×÷±≤≥≠≈∞√∑→←€£¥",
)


def _drawn(count: int) -> list[str]:
    """Random mixtures: words of one block or of several, with single and repeated spaces between."""
    rng = random.Random(20261107)
    texts = []
    for _ in range(count):
        blocks = rng.sample(_BLOCKS, rng.randint(1, 4))
        words = [
            "".join(rng.choice(rng.choice(blocks)) for _ in range(rng.randint(1, 12)))
            for _ in range(rng.randint(1, 12))
        ]
        texts.append("".join(word + rng.choice(("", " ", " ", " ", "  ", "\n")) for word in words))
    return texts


def _wikipedia(count: int) -> list[str]:
    lines = [line for line in (SHARED / "data/text/wiki.test.raw").read_text("utf-8").split("\n") if line.strip()]
    step = len(lines) // count
    return [line[:600] for line in lines[::step][:count]]


TEXTS = (*WRITTEN, *RUNS, *CONTROL, *_drawn(100), *_wikipedia(100))


def digest(ids: list[int]) -> str:
    """How goldens store the tokens of one text: how many, and 32 bits of a hash of them."""
    return f"{len(ids)}:{hashlib.sha256(repr(ids).encode()).hexdigest()[:8]}"


def texts_digest() -> str:
    return hashlib.sha256("\0".join(TEXTS).encode()).hexdigest()
