//! `POST /v1/backup`: a copy of the ledger at one moment, streamed to the client.
//!
//! The daemon makes the copy, because only it may read the database and write beside it. It sends
//! the copy, because only the operator knows where it belongs. A reader makes the copy, so the writer
//! stores webhooks meanwhile.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use tokio::sync::Semaphore;

use super::Shared;
use crate::ledger::{self, LedgerError, Reader};
use crate::server::Problem;

/// One at a time: until it is sent, each takes as much disk as the database.
static ONE: Semaphore = Semaphore::const_new(1);

const CHUNK_BYTES: usize = 256 * 1024;

/// `POST /v1/backup`: makes the copy, then streams it.
pub async fn backup(State(state): Shared) -> Result<Response, Problem> {
    let busy = |_| {
        Problem::new(
            StatusCode::CONFLICT,
            "busy",
            "another backup is being made; try again later",
        )
    };
    let slot = ONE.try_acquire().map_err(busy)?;
    let reader = state.reader.clone();
    let copied = tokio::task::spawn_blocking(move || copy(&reader)).await;
    let bug = |_| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "bug",
            "the backup panicked; please report this",
        )
    };
    let file = copied.map_err(bug)?.map_err(|error| failed(&error))?;
    let length = file.metadata().map_or(0, |meta| meta.len());
    let pieces = futures_util::stream::try_unfold((file, slot), |(file, slot)| async move {
        let (piece, file) = tokio::task::spawn_blocking(|| piece(file))
            .await
            .map_err(io::Error::other)??;
        Ok::<_, io::Error>(piece.map(|piece| (piece, (file, slot))))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/vnd.sqlite3"),
    );
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from(length));
    Ok(response)
}

/// Makes the copy beside the database, opens it and removes its name, so that no file is left
/// behind, however the request ends.
fn copy(reader: &Reader) -> Result<File, LedgerError> {
    let path = beside(reader.path());
    // A process that was killed here has left its copy.
    let _ = std::fs::remove_file(&path);
    ledger::copy(reader, &path)?;
    let file = File::open(&path).map_err(|source| LedgerError::Open {
        path: path.clone(),
        source,
    });
    let _ = std::fs::remove_file(&path);
    file
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".backup");
    PathBuf::from(name)
}

fn piece(mut file: File) -> io::Result<(Option<Bytes>, File)> {
    let mut bytes = vec![0; CHUNK_BYTES];
    let length = file.read(&mut bytes)?;
    bytes.truncate(length);
    Ok(((length > 0).then(|| Bytes::from(bytes)), file))
}

fn failed(error: &LedgerError) -> Problem {
    let mut text = error.to_string();
    if let Some(cause) = std::error::Error::source(error) {
        text = format!("{text}: {cause}");
    }
    tracing::error!(error = text, "a backup failed");
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "backup_failed",
        format!("the copy could not be made ({text})"),
    )
}
