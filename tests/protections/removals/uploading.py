"""References: each content sent once, under a lease that outlives it."""

from tests.protections.protection import Edit, Protection

STAGE = "tests/integration/test_upload_stage.py"
SQL = "tests/integration/test_uploads_sql.py"
HARD = "tests/integration/test_hard_cases_schedule.py"

UPLOAD = "worker/stages/upload.py"
MODEL = "models/uploads.py"

PROTECTIONS = (
    Protection(
        "upload-claim-per-bytes",
        "of many with the same bytes one uploads",
        (
            Edit(
                MODEL,
                "            where=or_(u.file_path.is_(None), ~valid) & or_(free, outdated),\n",
                "            where=or_(u.file_path.is_(None), ~valid),\n",
            ),
        ),
        (
            f"{STAGE}::test_two_with_the_same_bytes_at_once_upload_once",
            f"{SQL}::test_of_many_at_once_one_uploads",
            f"{HARD}::test_one_upload_message_delivered_twice_uploads_and_submits_once",
        ),
    ),
    Protection(
        "upload-is-remembered",
        "bytes that the provider has are not sent again",
        (
            Edit(
                MODEL,
                "            where=or_(u.file_path.is_(None), ~valid) & or_(free, outdated),\n",
                "            where=or_(free, outdated),\n",
            ),
        ),
        (f"{STAGE}::test_equal_bytes_are_uploaded_once",),
    ),
    Protection(
        "upload-claim-ends",
        "the claim of a dead uploader ends",
        (
            Edit(
                MODEL,
                "or_(u.claimed_until.is_(None), u.claimed_until <= func.now())",
                "u.claimed_until.is_(None)",
            ),
        ),
        (
            f"{STAGE}::test_a_claim_of_a_dead_uploader_ends",
            f"{SQL}::test_a_claim_that_was_left_is_taken_over_and_its_holder_is_too_late",
        ),
    ),
    Protection(
        "upload-ceases-to-be-valid",
        "an upload is not used beyond its validity",
        (
            Edit(
                MODEL,
                "    valid = u.valid_until > func.now() + margin\n",
                "    valid = u.valid_until.is_not(None)\n",
            ),
        ),
        (
            f"{STAGE}::test_an_upload_is_not_used_beyond_its_validity",
            f"{SQL}::test_what_is_no_longer_valid_is_uploaded_again",
        ),
    ),
    Protection(
        "lease-renewed-for-each-file",
        "leases are renewed per file uploaded",
        (
            Edit(
                UPLOAD,
                "        if not common.renew(self._rt.engine, self._id, self._lease, seconds):\n            raise LeaseLostError\n",
                "",
            ),
        ),
        (f"{STAGE}::test_a_lease_is_renewed_for_each_file",),
    ),
    Protection(
        "lost-lease-stops-the-upload",
        "a worker whose lease was lost while uploading goes no further",
        (
            Edit(UPLOAD, "            raise LeaseLostError\n", "            pass\n"),
            Edit(
                UPLOAD,
                "        row = common.load(conn, generation_id, lease)\n    if row is not None:\n",
                "    if row is not None:\n",
            ),
            Edit(
                "models/submission.py",
                '        g.lease == bindparam("held"),\n',
                "",
            ),
            Edit(
                "models/lifecycle.py",
                '"the intent to POST is committed", _S.UPLOADING, fence=_LEASE',
                '"the intent to POST is committed", _S.UPLOADING',
            ),
        ),
        (f"{STAGE}::test_a_lease_lost_while_uploading_goes_no_further",),
    ),
    Protection(
        "outage-of-uploads-fails-nothing",
        "an outage of the provider's storage fails no generation",
        (
            Edit(
                UPLOAD,
                "        case Disposition.RETRY | Disposition.AMBIGUOUS:\n",
                "        case Disposition.RETRY | Disposition.AMBIGUOUS:\n            _put_back(rt, row, str(error))\n            return\n",
            ),
        ),
        (f"{HARD}::test_an_outage_of_uploads_fails_no_generation",),
    ),
)
