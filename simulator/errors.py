"""The document's error codes, their texts and HTTP statuses."""

DESCRIPTIONS = {
    "INVALID_API_KEY": "Invalid or disabled API key",
    "INVALID_PARAMETER": "Invalid parameter value or format",
    "MISSING_PARAMETER": "Required parameter is missing",
    "INSUFFICIENT_CREDIT": "Insufficient credit balance",
    "CREDIT_DEDUCT_FAILED": "Credit deduction failed — please retry",
    "TASK_NOT_FOUND": "Task not found or does not belong to your API key",
    "TASK_SUBMIT_FAILED": "Task submission failed — please retry",
    "TASK_CANCEL_NOT_ALLOWED": "Task cannot be cancelled in its current status",
    "CONCURRENCY_LIMIT_REACHED": "Max concurrent tasks reached — task is queued",
    "FILE_UPLOAD_FAILED": "Failed to generate upload URL",
    "VIDEO_DOWNLOAD_FAILED": "Video processing failed",
    "CONTENT_MODERATION_FAILED": (
        "Content moderation failed — input or output contains sensitive content"
    ),
    "COPYRIGHT_VIOLATION": "Content may violate copyright restrictions",
    "PRIVACY_VIOLATION": "Input contains real person imagery which is not allowed",
    "SERVICE_BUSY": "Service is temporarily busy — please retry later",
    "RATE_LIMIT_EXCEEDED": "Rate limit exceeded — please slow down",
    "INTERNAL_ERROR": "Internal server error",
}

# "Most responses use HTTP 200 with error details in the body, the following may also be
# returned": so a code that the document's table doesn't mention comes with HTTP 200.
HTTP_STATUSES = {
    "INVALID_API_KEY": 401,
    "INVALID_PARAMETER": 400,
    "MISSING_PARAMETER": 400,
    "CONTENT_MODERATION_FAILED": 400,
    "TASK_CANCEL_NOT_ALLOWED": 400,
    "INSUFFICIENT_CREDIT": 402,
    "TASK_NOT_FOUND": 404,
    "RATE_LIMIT_EXCEEDED": 429,
    "CONCURRENCY_LIMIT_REACHED": 429,
    "INTERNAL_ERROR": 500,
    "TASK_SUBMIT_FAILED": 500,
    "SERVICE_BUSY": 503,
}


def describe(code: str) -> str:
    """The document's text for a code, or the code itself."""
    return DESCRIPTIONS.get(code, code)


def http_status(code: str) -> int:
    """The HTTP status that the document gives a code."""
    return HTTP_STATUSES.get(code, 200)


class ApiError(Exception):
    """A refusal in the provider's own words; becomes an error envelope."""

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        result: dict[str, object] | None = None,
        retry_after: str | None = None,
    ) -> None:
        self.code = code
        self.message = describe(code) if message is None else message
        self.result = result
        self.retry_after = retry_after
        super().__init__(f"{self.code}: {self.message}")


def invalid(text: str) -> ApiError:
    """INVALID_PARAMETER, worded like the document's example."""
    return ApiError("INVALID_PARAMETER", f"Invalid parameter: {text}")


def missing(name: str) -> ApiError:
    """MISSING_PARAMETER for one field."""
    return ApiError("MISSING_PARAMETER", f"Missing parameter: {name}")
