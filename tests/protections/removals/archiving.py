"""The archive: whole files only, each once, none given up too early or left lying."""

from tests.protections.protection import Edit, Protection
from tests.protections.removals.crashes import DEATH

STAGE = "tests/integration/test_archive_stage.py"
PRUNE = "tests/integration/test_prune.py"
STORES = "tests/integration/test_archive_stores.py"
FETCHING = "tests/integration/test_archive_fetching.py"

MODEL = "models/artifacts/storing.py"
WORK = "worker/stages/archive.py"
FETCH = "worker/archive/fetching.py"

PROTECTIONS = (
    Protection(
        "archive-claim-ends",
        "an artifact whose worker died is claimed again when its lease ends",
        (
            # The broker brings back what was not acknowledged when the worker died.
            Edit(
                "worker/celeryconfig.py",
                '    "visibility_timeout": _setting("lease"),\n',
                '    "visibility_timeout": 10**6,\n',
            ),
            Edit(
                MODEL,
                ".values(lease=a.lease + 1, due_at=func.now() + lasts * text(\"interval '1 second'\"))",
                ".values(lease=a.lease + 1, due_at=func.now() + lasts * text(\"interval '1 day'\"))",
            ),
        ),
        (f"{DEATH}[archive.after_download]", f"{DEATH}[archive.before_record]"),
    ),
    Protection(
        "archive-fenced-by-the-lease",
        "who lost the claim of an artifact changes nothing",
        (Edit(MODEL, "            & (a.lease == lease)\n", ""),),
        (
            f"{STAGE}::test_a_stale_or_repeated_message_does_nothing",
            f"{STAGE}::test_a_lost_claim_is_claimed_again_and_its_late_holder_changes_nothing",
        ),
    ),
    Protection(
        "archive-lease-renewed-by-uploads",
        "a long upload keeps its claim, and ends where it has lost it",
        (Edit(WORK, "size=fetched.size, alive=keep)", "size=fetched.size, alive=lambda: None)"),),
        (
            f"{STAGE}::test_the_lease_is_renewed_while_a_file_is_kept",
            f"{STAGE}::test_who_lost_its_lease_while_a_file_was_kept_ends_at_once",
        ),
    ),
    Protection(
        "unpruned-until-stored",
        "a generation is not pruned while its results can still be stored",
        (
            Edit(
                "worker/upkeep/prune.py",
                "a.due_at.is_not(None), a.available_until > func.now()",
                "a.due_at.is_not(None), a.available_until > func.now() + timedelta(days=99)",
            ),
        ),
        (f"{PRUNE}::test_a_generation_stays_while_its_video_can_still_be_stored",),
    ),
    Protection(
        "archive-renews-the-address",
        "an expired address is renewed by a GET of the task",
        (Edit(FETCH, "_RENEW = (400, 401, 403, 404, 410)\n", "_RENEW = ()\n"),),
        (
            f"{STAGE}::test_an_expired_address_is_renewed_by_a_get_of_the_task",
            f"{STAGE}::test_a_refused_address_is_renewed_at_once[403]",
        ),
    ),
    Protection(
        "archive-counts-the-bytes",
        "a download that was cut off is not taken for whole",
        (
            Edit(
                FETCH,
                "    if announced is not None and size != announced:\n",
                "    if False:\n",
            ),
            # urllib3 counts as well.
            Edit(
                FETCH,
                "answer.raw.read1(_CHUNK, decode_content=False)",
                "answer.raw._fp.read(_CHUNK)",
            ),
        ),
        (f"{FETCHING}::test_an_answer_that_is_cut_off_is_not_whole[/cut]",),
    ),
    Protection(
        "archive-looks-at-the-content",
        "what is no video is not stored as one",
        (
            Edit(
                "worker/archive/media.py",
                '    if not found.startswith(f"{family}/"):\n',
                "    if False:\n",
            ),
        ),
        ("tests/unit/test_archive_media.py::test_what_is_no_video_is_refused_by_its_content",),
    ),
    Protection(
        "archive-asks-in-time",
        "what fails for a day asks for an operator",
        (Edit(MODEL, "ALARM_AFTER = timedelta(days=1)\n", "ALARM_AFTER = timedelta(days=9)\n"),),
        (f"{STAGE}::test_what_fails_for_a_day_asks_for_an_operator_once",),
    ),
    Protection(
        "archive-catches-up",
        "what completed without an archive is asked for later",
        (Edit(MODEL, "finished_at, id LIMIT :most", "finished_at, id LIMIT 0 * :most"),),
        (f"{STAGE}::test_what_completed_before_the_archive_was_configured_is_stored_too",),
    ),
    Protection(
        "archive-upload-not-closed-when-broken",
        "an upload that fails in the middle makes no object",
        (
            Edit(
                "worker/archive/objects.py",
                "        remote.closed = True\n",
                "        remote.close()\n",
            ),
        ),
        (f"{STORES}::test_an_upload_that_breaks_off_makes_no_object",),
    ),
)
