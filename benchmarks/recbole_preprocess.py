r"""RecBole's own preprocessing of a log of user, item and time, for `benchmarks.preprocess --with recbole`.

    .venv-recbole/bin/python -m benchmarks.recbole_preprocess FOLDER

FOLDER holds `log.inter`, RecBole's file of events. What is timed is what a training of SASRec would do before its first
step: reading the file, numbering ids, sorting, splitting (leave one out), and one row of at most 50 earlier events for
each event; these stay in memory. RecBole wants packages that it does not need for this and that are hard to install; an
environment without them is made by

    python -m venv .venv-recbole
    .venv-recbole/bin/pip install --no-deps recbole==1.2.1
    .venv-recbole/bin/pip install torch "pandas<2.3" "numpy<2" scipy colorlog==4.7.2 colorama==0.4.4 tabulate \
        texttable psutil pyyaml tqdm scikit-learn tensorboard

The last line of stdout is one JSON document.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path

from recbole.config import Config
from recbole.data import create_dataset, data_preparation

from benchmarks.memory import resident_bytes

OPTIONS = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "TIME_FIELD": "time",
    "load_col": {"inter": ["user_id", "item_id", "time"]},
    "MAX_ITEM_LIST_LENGTH": 50,
    "train_neg_sample_args": None,
    "loss_type": "CE",
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "state": "WARNING",
    "use_gpu": False,
    "show_progress": False,
}


def main() -> None:
    """Prepares the data and prints what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of the name `log`, with `log.inter`")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as scratch:
        options = {**OPTIONS, "data_path": str(folder.parent), "checkpoint_dir": scratch}
        config = Config(model="SASRec", dataset=folder.name, config_dict=options)
        train, _, _ = data_preparation(config, create_dataset(config))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "peak_bytes": resident_bytes("VmHWM"),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "rows": len(train.dataset),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
