"""Write the pictures of the console in ``docs/images``: light, dark, and on a phone.

    .venv/bin/python scripts/screenshots.py [FOLDER]

Needs what ``scripts/browser.py`` installs. Starts a node of its own on a temporary data root, with sessions to look at.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from modeld.http.door import HttpConfig, HttpDoor
from modeld.node.config import NodeConfig
from modeld.session import SessionConfig
from modeld.transport.host import HostConfig, hosted
from modeld.transport.security import read_token
from modeld.types import DecodeOptions, Message

ROOT = Path(__file__).resolve().parent.parent
WORDS = {"amber": "copper", "ivory": "lotus", "river": "42", "stone": "77", "lotus": "amber", "kiwi": "river"}
NOTES = "Notes:\n" + "\n".join(f"{word} is {value}" for word, value in WORDS.items())
AGENTS = {
    "editor": ["What is amber?"],
    "reviewer": ["What is river?", "What is kiwi?"],
    "docs": ["Give amber as JSON.", "What is stone?", "What is lotus?"],
    "release notes": ["Count to 40."],
}


async def main(folder: Path) -> int:
    """Take them; the exit code."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        door = HttpDoor(HttpConfig(data_root=root, host="127.0.0.1", port=0, required=True))
        node = NodeConfig(data_root=root, sequences=5, ram=256 << 20, disk=1 << 30)
        async with hosted(HostConfig(node=node), lambda: None, door) as (served, _, _):
            for agent, questions in AGENTS.items():
                session = await served.open_session("tiny", SessionConfig(name=agent))
                talk = [Message("system", NOTES)]
                for question in questions:
                    talk.append(Message("user", question))
                    options = DecodeOptions(temperature=0.0, max_tokens=100)
                    talk.append((await session.turn(talk, options=options, think="off").join()).message)
            changed = [Message("system", NOTES.replace("kiwi is river", "kiwi is 5")), Message("user", "What is kiwi?")]
            session = await served.open_session("tiny", SessionConfig(name="reviewer"))
            await session.turn(changed, options=DecodeOptions(temperature=0.0, max_tokens=20), think="off").join()
            modules = ROOT / ".venv" / "browser" / "node_modules"
            return await asyncio.to_thread(
                subprocess.call,
                ["node", str(ROOT / "tests" / "http" / "browser" / "screenshots.cjs"), door.state, str(folder)],
                env=os.environ | {"MODELD_TOKEN": read_token(root), "NODE_PATH": str(modules)},
            )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    target.mkdir(parents=True, exist_ok=True)
    sys.exit(asyncio.run(main(target.absolute())))
