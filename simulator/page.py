"""A page for people: tasks, uploads and balances at a glance."""

from datetime import UTC, datetime
from html import escape

from simulator.storage import Upload
from simulator.tasks import Task
from simulator.world import World

_SHOWN = 100

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;
color:#1d2430;background:#f7f8fa}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%;background:#fff}td,th{padding:.4rem .6rem;
border-bottom:1px solid #e3e6eb;text-align:left;vertical-align:top}th{font-weight:600}
.completed{color:#18794e}.failed,.expired,.cancelled{color:#b42318}
figure{display:inline-block;margin:0 1rem 1rem 0;max-width:18rem;vertical-align:top}
figure img,figure video{max-width:100%;max-height:12rem}figcaption{font-size:.8rem;
overflow-wrap:anywhere}code{font-size:.85em}
"""


def render(world: World) -> str:
    """The page as HTML."""
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>Seedance simulator</title><style>{_STYLE}</style>"
        f"<h1>Seedance simulator</h1><p>Speed {world.clock.speed:g}, "
        f"{len(world.tasks)} tasks, {len(world.uploads.all())} uploads, "
        f"{len(world.faults.view())} faults ordered.</p>"
    )
    links = (
        "<p><a href=config>config</a> · <a href=requests>requests</a> · "
        "<a href=faults>faults</a> · <a href=submits>submits</a></p>"
    )
    return head + _accounts(world) + _tasks(world) + _uploads(world) + links


def _accounts(world: World) -> str:
    rows = "".join(
        f"<tr><td>{account.number}<td>{account.total}<td>{account.used}<td>{account.remaining}"
        f"<td>{account.at_work}<td>{len(account.waiting)}<td>{'yes' if account.enabled else 'no'}"
        for account in world.accounts.values()
    )
    return (
        "<h2>Accounts</h2><table><tr><th>Account<th>Credits<th>Used<th>Remaining<th>At work"
        f"<th>Waiting<th>Enabled{rows}</table>"
    )


def _tasks(world: World) -> str:
    tasks = world.tasks.all()
    rows = "".join(_task(world, task) for task in reversed(tasks[-_SHOWN:]))
    more = f"<p>The latest {_SHOWN} of {len(tasks)}.</p>" if len(tasks) > _SHOWN else ""
    return (
        "<h2>Tasks</h2><table><tr><th>Task<th>Status<th>Prompt<th>Size<th>Created<th>Charged"
        f"{rows}</table>{more}"
    )


def _task(world: World, task: Task) -> str:
    status = task.status_at(world.clock.now())
    created = datetime.fromtimestamp(task.created_wall, UTC).strftime("%H:%M:%S")
    work, code = task.work, task.outcome.error_code if status == "failed" else None
    return (
        f"<tr><td><code><a href='tasks/{task.task_id}'>{task.task_id[:12]}</a></code>"
        f"<td class={status}>{status}{f'<br>{escape(code)}' if code else ''}"
        f"<td>{escape(' / '.join(work.texts)[:200])}"
        f"<td>{work.resolution} {escape(work.ratio)} {work.duration}&nbsp;s<td>{created}"
        f"<td>{task.charged}"
    )


def _uploads(world: World) -> str:
    figures = "".join(_upload(upload) for upload in world.uploads.all()[-_SHOWN:])
    return f"<h2>Uploads</h2>{figures or '<p>None.</p>'}"


def _upload(upload: Upload) -> str:
    link = f"uploads/{escape(upload.file_path, quote=True)}"
    name = escape(upload.file_path)
    if upload.data is None:
        return f"<figure><figcaption>{name}<br>presigned, nothing put yet</figcaption></figure>"
    seen = (
        f"<img src='{link}' alt=''>"
        if upload.content_type.startswith("image/")
        else f"<video src='{link}' controls muted></video>"
    )
    about = f"{name}<br>{upload.content_type}, {len(upload.data)} bytes, {upload.puts} PUT"
    return f"<figure>{seen}<figcaption>{about}</figcaption></figure>"
