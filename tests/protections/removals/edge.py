"""Keys and signed addresses: where they may go, and that no log shows them."""

from tests.protections.protection import Edit, Protection

WIRE = "tests/integration/test_api_client_wire.py"
LOGS = "tests/unit/test_logs.py"
REDACTION = "tests/unit/test_redaction.py"
DATABASE = "tests/integration/test_database.py"

TLS = "tests/unit/test_tls_addresses.py"
GRANTS = "tests/integration/test_grants.py"

PROTECTIONS = (
    Protection(
        "certificates-are-checked",
        "a broker's certificate is checked where the address says nothing of it",
        (
            Edit(
                "worker/broker_address.py",
                'tls.get(_REQS, "required")',
                'tls.get(_REQS, "none")',
            ),
        ),
        (
            f"{TLS}::test_without_options_certificates_are_checked_too",
            "tests/integration/test_tls.py::test_a_broker_that_is_not_trusted_is_not_spoken_to",
        ),
    ),
    Protection(
        "one-secret-not-two",
        "a secret that is given twice is refused",
        (
            Edit(
                "models/secret_files.py",
                '    if value:\n        raise SecretFileError(f"{variable} is set, and so is'
                ' {variable}{SUFFIX}: unset one of them")\n',
                "",
            ),
        ),
        ("tests/unit/test_secret_files.py::test_both_are_refused",),
    ),
    Protection(
        "files-are-cut-from-logs",
        "what was read from a file is no more shown than what is in the environment",
        (
            Edit(
                "worker/redaction.py",
                "in (*environ.items(), *_from_files(environ)):",
                "in environ.items():",
            ),
        ),
        ("tests/unit/test_secret_files.py::test_what_came_from_a_file_is_cut_from_logs_as_well",),
    ),
    Protection(
        "the-ledger-by-rights",
        "no role may change the ledger",
        (
            Edit(
                "models/grants.py",
                '"ledger_entries": _SI,\n        "metric',
                '"ledger_entries": _ALL,\n        "metric',
            ),
        ),
        (f"{GRANTS}::test_a_role_may_do_its_work_and_nothing_that_hides_or_destroys",),
    ),
    Protection(
        "rights-are-taken-back",
        "a role has the rights of its purpose and none that it had before",
        (Edit("models/grants.py", 'f"REVOKE ALL ON {schema}.{table} FROM {name}"', '"SELECT 1"'),),
        (f"{GRANTS}::test_what_a_role_had_before_is_taken_back",),
    ),
    Protection(
        "messages-have-a-bound",
        "an entry larger than any request is set aside before it is read",
        (
            Edit(
                "worker/transport.py",
                "            if size > MOST_BYTES:\n",
                "            if size < 0:\n",
            ),
        ),
        (
            "tests/acceptance/test_service.py::test_bad_input_ends_as_a_failed_generation_and_garbage_is_set_aside",
        ),
    ),
    Protection(
        "no-row-in-an-error",
        "DETAIL is cut from the database's errors: it quotes rows",
        (
            Edit(
                "models/database.py",
                '    event.listen(engine, "handle_error", _without_the_row)\n',
                "",
            ),
        ),
        (f"{DATABASE}::test_an_error_shows_neither_parameters_nor_the_row",),
    ),
    Protection(
        "no-parameters-in-an-error",
        "parameters of statements are not printed",
        (
            Edit("models/database.py", "hide_parameters=True,", "hide_parameters=False,"),
            Edit(
                "models/database.py",
                "        context.sqlalchemy_exception.args = (shown,)\n",
                "        str(shown)\n",
            ),
        ),
        (
            "tests/integration/test_hard_cases_schedule.py::test_the_values_of_a_failed_statement_are_not_printed",
        ),
    ),
    Protection(
        "logs-show-no-query",
        "no log line shows the query of a signed address",
        (
            Edit(
                "worker/redaction.py",
                "        text = urls.redact(text)\n",
                "        text = str(text)\n",
            ),
        ),
        (f"{REDACTION}::test_a_text_is_cut",),
    ),
    Protection(
        "logs-show-no-key",
        "no log line shows the key",
        (
            Edit(
                "worker/redaction.py",
                "            text = self._secrets.sub(CUT, text)\n",
                "            text = str(text)\n",
            ),
        ),
        (f"{LOGS}::test_no_line_shows_a_secret",),
    ),
    Protection(
        "logs-show-no-prompt",
        "no log line shows a prompt that stands in it as data",
        (
            Edit(
                "worker/redaction.py",
                "        text = _PROMPT.sub(rf\"\\1'{CUT}'\", text)\n",
                "        text = str(text)\n",
            ),
        ),
        (f"{LOGS}::test_no_line_shows_a_secret", f"{REDACTION}::test_a_text_is_cut"),
    ),
    Protection(
        "a-look-at-all-fields-together-misses-none",
        "a line whose texts were looked at together is cut as each of its fields would be",
        (Edit("worker/redaction.py", "if plain and self.text(together) == together:", "if True:"),),
        ("tests/unit/test_redaction.py::test_a_line_is_cut_as_each_of_its_fields_would_be",),
    ),
    Protection(
        "every-field-of-a-line-is-cut",
        "what is bound to a line is cut as well as what it says",
        (
            Edit(
                "worker/logs.py",
                "        return dict(cut.event(event))\n",
                '        return {**event, "event": cut.value(event["event"])}\n',
            ),
        ),
        (f"{LOGS}::test_no_line_shows_a_secret",),
    ),
    Protection(
        "figures-are-not-for-strangers",
        "without a token the gateway shows its figures on its own machine alone",
        (
            Edit(
                "worker/gateway/figures.py",
                "        elif not _from_here(request):\n",
                "        elif _from_here(request) is None:\n",
            ),
        ),
        ("tests/integration/test_metrics.py::test_strangers_see_nothing_at_the_gateway",),
    ),
    Protection(
        "totals-wait-for-open-transactions",
        "what an open transaction has written is not passed over when others' rows are counted",
        (
            Edit(
                "models/metrics/totals.py",
                "pg_snapshot_xmin(pg_current_snapshot())",
                "pg_snapshot_xmax(pg_current_snapshot())",
            ),
        ),
        ("tests/integration/test_metrics_sql.py::test_what_commits_late_is_counted_once",),
    ),
    Protection(
        "quoted-key-is-cut",
        "a key that the provider quotes is not passed on",
        (
            Edit(
                "api_client/calls.py",
                'redact(message.replace(self._config.api_key, "…"))',
                "redact(message)",
            ),
        ),
        (f"{WIRE}::test_a_key_that_the_provider_quotes_is_not_passed_on",),
    ),
    Protection(
        "storage-never-sees-the-key",
        "the key never reaches the storage",
        (
            Edit(
                "api_client/calls.py",
                "        self._storage = Transport(config, common)\n",
                '        self._storage = Transport(config, {**common, "X-API-Key": config.api_key})\n',
            ),
        ),
        (
            f"{WIRE}::test_upload_a_file",
            "tests/integration/test_upload_stage.py::test_a_picture_is_uploaded_and_submitted_by_its_path",
        ),
    ),
    Protection(
        "signed-address-not-in-a-repr",
        "a signed address is not in the repr of what was observed",
        (
            Edit(
                "models/lifecycle.py",
                "    video_url: str | None = field(default=None, repr=False)",
                "    video_url: str | None = field(default=None)",
            ),
        ),
        ("tests/unit/test_lifecycle.py::test_a_signed_url_is_not_in_the_repr",),
    ),
)
