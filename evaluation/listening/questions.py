"""What raters are asked: overall impression (OVL), audio-text relation (REL), mean opinion score (MOS).

AudioLDM 2, section IV-C: each is a Likert item from one to five, larger is better.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    title: str
    wording: str
    labels: tuple[str, str, str, str, str]  # of the answers 1 to 5
    shows_text: bool = False  # the clip's caption stands on the page
    about_quality: bool = False  # a low-pass anchor has to score below the real recording


ACR_LABELS = ("Bad", "Poor", "Fair", "Good", "Excellent")  # ITU-T P.800, absolute category rating
QUESTIONS = {
    "OVL": Question(
        "Overall impression",
        "How good is this clip as a whole? Think of how clear and how real it sounds; leave the text aside.",
        ACR_LABELS,
        about_quality=True,
    ),
    "REL": Question(
        "Match with the text",
        "How well does what you hear match the text? Leave the sound quality aside.",
        ("Not at all", "Slightly", "Partly", "Mostly", "Perfectly"),
        shows_text=True,
    ),
    "MOS": Question(
        "Naturalness",
        "How natural does this speech sound, as if a person had said it?",
        ACR_LABELS,
        about_quality=True,
    ),
}
CHECK = "CHECK"  # the one question of an attention check
CHECK_QUESTION = Question(
    "Listening check",
    "This clip is no rating: how many beeps do you hear?",
    ("beep", "beeps", "beeps", "beeps", "beeps"),
)


def question_of(code: str) -> Question:
    return CHECK_QUESTION if code == CHECK else QUESTIONS[code]
