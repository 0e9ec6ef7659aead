//! `everhook serve DIR`: the files of one folder over HTTP, for sites without a server of their own.
//!
//! The folder is opened once. No name leads out of it, through symlinks neither (openat2(2),
//! RESOLVE_BENEATH); names that start with a dot are not there, but `.well-known`. Folders are never
//! listed.

mod file;
mod name;
mod types;

use std::{
    io::{self, Write},
    net::SocketAddr,
    os::fd::OwnedFd,
    path::Path,
    process::ExitCode,
    rc::Rc,
};

use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_MODIFIED_SINCE,
        IF_NONE_MATCH, LAST_MODIFIED, LOCATION, X_CONTENT_TYPE_OPTIONS,
    },
};
use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::net::TcpListener;

pub(super) use file::FileBody;

use super::{
    answer::{Content, reply},
    doors::{self, Desk},
    guests::{Guest, Guests, seats},
    signals::told_to_end,
};
use file::{Found, Page};
use name::Name;

/// Serves `dir` on `bind` until TERM or INT; 0 then, 1 when it cannot start, 2 without an address.
#[must_use]
pub fn serve(dir: &Path, bind: Option<SocketAddr>) -> ExitCode {
    let Some(bind) = bind else {
        eprintln!("everhook: serve: an address is needed: --bind 127.0.0.1:8080");
        return ExitCode::from(2);
    };
    match super::run(open(dir, bind)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("everhook: serve: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn open(dir: &Path, bind: SocketAddr) -> io::Result<()> {
    let named = |what: String| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder =
        openat(CWD, dir, flags, Mode::empty()).map_err(io::Error::from).map_err(named(dir.display().to_string()))?;
    // A kernel or container that refuses openat2 would make every page missing.
    file::find(&folder, Path::new(".")).map_err(named(format!("cannot look into {}", dir.display())))?;
    let told = told_to_end()?;
    let listener = TcpListener::bind(bind).await.map_err(named(format!("cannot listen on {bind}")))?;
    let at = listener.local_addr()?;
    // Nobody reading is no reason not to serve.
    let _ = writeln!(io::stdout(), "serving {} on http://{at}", dir.display());
    let guests = Guests::new(Vec::new(), seats()?);
    doors::open(listener, guests, None, Rc::new(Site { folder }), told).await;
    Ok(())
}

struct Site {
    folder: OwnedFd,
}

impl Desk for Site {
    async fn answer(&self, request: Box<Request<Incoming>>, _: &Guest) -> Response<Content> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are understood here\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let uri = request.uri();
        let found = Name::new(uri.path()).map(|name| (self.page(&name), name));
        match found {
            Some((Ok(Some((page, false))), _)) => show(page, request.method(), request.headers()),
            // Links inside the page are relative to the folder.
            Some((Ok(Some((_, true))), name)) => moved(&name, uri.query()),
            Some((Err(e), _)) if out_of_descriptors(&e) => plain(StatusCode::SERVICE_UNAVAILABLE, "too busy\n"),
            _ => plain(StatusCode::NOT_FOUND, "not found\n"),
        }
    }
}

impl Site {
    /// The page of this name, and whether the name lacks the slash at its end.
    fn page(&self, name: &Name) -> io::Result<Option<(Page, bool)>> {
        match file::find(&self.folder, &name.path)? {
            Found::Page(page) if !name.slash => Ok(Some((page, false))),
            Found::Folder => match file::find(&self.folder, &name.path.join("index.html"))? {
                Found::Page(page) => Ok(Some((page, !name.slash))),
                Found::Folder | Found::Other => Ok(None),
            },
            Found::Page(_) | Found::Other => Ok(None),
        }
    }
}

fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

fn plain(status: StatusCode, text: &'static str) -> Response<Content> {
    reply(status, "text/plain; charset=utf-8", text)
}

fn moved(name: &Name, query: Option<&str>) -> Response<Content> {
    let mut response = plain(StatusCode::MOVED_PERMANENTLY, "moved\n");
    let query = query.map(|q| format!("?{q}")).unwrap_or_default();
    if let Ok(place) = HeaderValue::try_from(format!("{}{query}", name.location())) {
        response.headers_mut().insert(LOCATION, place);
    }
    response
}

fn show(page: Page, method: &Method, asked: &HeaderMap) -> Response<Content> {
    let known = unchanged(&page, asked);
    let head: [(HeaderName, String); 3] =
        [(ETAG, page.etag.clone()), (LAST_MODIFIED, page.modified.clone()), (CONTENT_LENGTH, page.length.to_string())];
    let mut response = Response::new(Content::empty());
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.kind));
    for (name, value) in head {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    if known {
        headers.remove(CONTENT_LENGTH);
        headers.remove(CONTENT_TYPE);
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else if method == Method::GET {
        *response.body_mut() = Content::File(FileBody::new(page.file, page.length));
    }
    response
}

/// RFC 9110 section 13: a tag decides where one is asked with, the date only else; a date that is not
/// exactly ours means another version.
fn unchanged(page: &Page, asked: &HeaderMap) -> bool {
    if asked.contains_key(IF_NONE_MATCH) {
        let tags = asked.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        return tags
            .flat_map(|list| list.split(','))
            .map(str::trim)
            .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == page.etag);
    }
    asked.get(IF_MODIFIED_SINCE).is_some_and(|date| date.as_bytes() == page.modified.as_bytes())
}
