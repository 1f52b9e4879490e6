import shutil

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from data import musiccaps
from data.verify import verify

HEADER = (
    "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval\n"
)
ROW = '-0Gj8-vB1q4,30,40,"/m/0140xf,/m/04rlf","[\'sad\', \'ballad\']","A song, sad.",4,False,True\n'


def test_rows(tmp_path):
    (tmp_path / "musiccaps-public.csv").write_text(HEADER + ROW)
    soundfile.write(tmp_path / "[-0Gj8-vB1q4]-[30-40].wav", 0.1 * np.ones(8000), 8000)
    (clip,) = musiccaps.clips(tmp_path, "test")
    assert (clip.key, clip.text, clip.labels) == ("-0Gj8-vB1q4__30", "A song, sad.", ["sad", "ballad"])
    assert (clip.extra["balanced"], clip.extra["audioset_eval"]) == (False, True)
    assert musiccaps.main([str(tmp_path), str(tmp_path / "shards")]) == 0
    assert verify(tmp_path / "shards/test")["num_clips"] == 1


def test_user_errors(tmp_path):
    (tmp_path / "musiccaps-public.csv").write_text(HEADER + ROW.replace("['sad', 'ballad']", "sad"))
    with pytest.raises(UserError, match="'sad' is not a list"):
        list(musiccaps.clips(tmp_path, "test"))


def test_real_rows(real_data, tmp_path):
    shutil.copy(real_data / "metadata/musiccaps/musiccaps-public_0_1500.csv", tmp_path / "musiccaps-public.csv")
    found = list(musiccaps.clips(tmp_path, "test"))
    assert len(found) == len({clip.key for clip in found}) == 1500
    assert sum(clip.extra["audioset_eval"] for clip in found) == 771
    assert sum(clip.extra["balanced"] for clip in found) == 102
    assert all(clip.text and clip.labels for clip in found)
