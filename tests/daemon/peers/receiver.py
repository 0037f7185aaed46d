"""What people write by hand: a webhook receiver as the vendors' guides show it. For comparison.

pip install fastapi uvicorn; DATABASE=events.db uvicorn receiver:app
"""

import hashlib
import hmac
import os
import sqlite3

from fastapi import FastAPI, HTTPException, Request

app = FastAPI()
database = sqlite3.connect(os.environ["DATABASE"], check_same_thread=False)
database.executescript(os.environ.get("PRAGMAS", ""))
database.execute("CREATE TABLE IF NOT EXISTS events (run_id TEXT, status TEXT, body BLOB)")
database.commit()


@app.post("/hooks/sky")
async def hook(request: Request):
    body = await request.body()
    expected = hmac.new(os.environ["SECRET"].encode(), body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, request.headers.get("x-skyvern-signature", "")):
        raise HTTPException(status_code=401)
    event = await request.json()
    database.execute("INSERT INTO events VALUES (?, ?, ?)", (event["run_id"], event["status"], body))
    database.commit()
    return {"stored": True}
