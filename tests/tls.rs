//! HTTPS, asked for by openssl and curl: certificates are exchanged under load, and what is of no use is told.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::sys::signal::Signal;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use server::{Server, text};

const CONFIG: &str = r#"(state_dir: "@DIR@/state", http: [
    (bind: "127.0.0.1:0", serve: [Hooks], tls: (cert: "@DIR@/tls/cert.pem", key: "@DIR@/tls/key.pem")),
    (bind: "127.0.0.1:0", serve: [Api]),
])"#;

fn openssl(folder: &Path, args: &[&str]) -> Output {
    Command::new("openssl").args(args).current_dir(folder).stdin(Stdio::null()).output().unwrap()
}

/// A certificate for this machine and its key, in two files of a folder; the new one takes the old one's place
/// as a tool that renews it does.
fn renew(folder: &Path, dates: &[&str]) {
    make(folder, dates);
    for name in ["cert", "key"] {
        put(folder, name);
    }
}

/// In the old one's place.
fn put(folder: &Path, name: &str) {
    fs::rename(folder.join(format!("{name}.new")), folder.join(format!("{name}.pem"))).unwrap();
}

/// Both under names that nobody reads.
fn make(folder: &Path, dates: &[&str]) {
    fs::create_dir_all(folder).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let subject = ["req", "-x509", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"];
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.new"];
    let kind = ["-addext", "basicConstraints=critical,CA:FALSE", "-out", "cert.new"];
    let made = openssl(folder, &[&subject[..], &key, &kind, dates].concat());
    assert!(made.status.success(), "{}", text(&made));
}

const LONG: &[&str] = &["-days", "90"];

fn server() -> Server {
    let server = Server::new(CONFIG);
    renew(&server.path().join("tls"), LONG);
    server
}

fn certificate(server: &Server) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(server.path().join("tls/cert.pem")).unwrap()
}

/// A connection that trusts this certificate alone.
fn connect(address: SocketAddr, trusted: &CertificateDer<'static>) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(ring::default_provider().into());
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::IpAddress(address.ip().into());
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

/// Asks over a connection that is kept; false where there is no answer of the server's.
fn ask(stream: &mut StreamOwned<ClientConnection, TcpStream>) -> bool {
    if stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n").is_err() {
        return false;
    }
    let mut reader = BufReader::new(stream);
    let (mut line, mut length, mut status) = (String::new(), 0, String::new());
    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if status.is_empty() {
            status.clone_from(&line);
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).is_ok() && status.starts_with("HTTP/1.1 200") && body == b"ok"
}

/// Is a new connection proven by this certificate?
fn proven_by(address: SocketAddr, trusted: &CertificateDer<'static>) -> bool {
    ask(&mut connect(address, trusted))
}

fn curl(server: &Server, args: &[&str]) -> Output {
    let trust = server.path().join("tls/cert.pem");
    Command::new("curl")
        .args(["-sS", "--max-time", "30", "--cacert"])
        .arg(trust)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn reason(server: &Server, i: usize) -> Value {
    server.status()["supervisor"]["listeners"][i].clone()
}

#[test]
fn openssl_and_curl_are_answered() {
    let server = server().started();
    let at = server.address("hooks");
    let url = format!("https://{at}/healthz");
    let answer = curl(&server, &["-w", "%{http_code} %{http_version}", &url]);
    assert_eq!(text(&answer), "ok200 1.1");

    let connect = at.to_string();
    for (how, want) in [
        (&["-tls1_3"][..], "TLSv1.3"),
        (&["-tls1_2"], "TLSv1.2"),
        (&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], ""),
        (&["-alpn", "h2,http/1.1"], "ALPN protocol: http/1.1"),
        (&["-CAfile", "tls/cert.pem", "-verify_ip", "127.0.0.1", "-verify_return_error"], "Verify return code: 0 (ok)"),
    ] {
        let session = openssl(server.path(), &[&["s_client", "-connect", &connect][..], how].concat());
        assert_eq!(session.status.success(), !want.is_empty(), "{how:?}: {}", text(&session));
        assert!(text(&session).contains(want), "{how:?}: {}", text(&session));
    }
}

#[test]
fn who_speaks_something_else_harms_nobody() {
    let server = server().started();
    let at = server.address("hooks");
    let mut silent = http::Client::connect(at);
    let trusted = certificate(&server);
    let mut kept = connect(at, &trusted);
    assert!(ask(&mut kept));
    for said in [&b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"[..], &[0; 100], b"\x16\x03\x01\xff\xff\x01"] {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(said).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // Closed or reset, after an alert at most.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 16 && !answer.starts_with(b"HTTP"), "{answer:?}");
    }
    assert!(ask(&mut kept) && proven_by(at, &trusted));
    // Whoever says nothing is let go, as one who sends no request is.
    assert!(silent.is_closed());
    assert!(ask(&mut kept));
}

#[test]
fn a_new_certificate_counts_for_new_connections() {
    let server = server().started();
    let at = server.address("hooks");
    let folder = server.path().join("tls");
    let pid = reason(&server, 0)["pid"].clone();
    let first = certificate(&server);
    let mut kept = connect(at, &first);
    assert!(ask(&mut kept));

    // By itself, once both files are there.
    renew(&folder, LONG);
    let second = certificate(&server);
    server.until("it is seen", |_| proven_by(at, &second).then_some(()));
    assert!(!proven_by(at, &first) && ask(&mut kept));
    let told = |server: &Server, word: &str| server.events().iter().filter(|event| event["to"] == word).count();
    server.until("it is told", |server| (told(server, "certificate_renewed") == 1).then_some(()));

    // One that does not fit is told, and the one before is kept.
    make(&folder, LONG);
    put(&folder, "cert");
    let wrong = server.fails(1, &["reload"]);
    let key = format!("the key {} is not the key of this certificate", folder.join("key.pem").display());
    let place = format!("({}:2:", server.config().display());
    assert!(wrong.contains(&key) && wrong.contains(&place), "{wrong}");
    assert!(proven_by(at, &second) && ask(&mut kept));
    let checked = server.fails(1, &["check"]);
    assert!(checked.contains(&key), "{checked}");

    // By a signal, and by the command, which says so.
    renew(&folder, LONG);
    let third = certificate(&server);
    server.signal(Signal::SIGHUP);
    server.until("it is read", |_| proven_by(at, &third).then_some(()));
    renew(&folder, LONG);
    let fourth = certificate(&server);
    let said = server.ok(&["reload"]);
    assert!(said.contains("a new certificate") || told(&server, "certificate_renewed") > 1, "{said}");
    server.until("it is read", |_| proven_by(at, &fourth).then_some(()));
    assert!(ask(&mut kept));
    assert_eq!(reason(&server, 0)["pid"], pid, "the same process serves on");
}

#[test]
fn a_certificate_of_no_use_keeps_its_own_address_back_alone() {
    let server = Server::new(CONFIG);
    let folder = server.path().join("tls");
    let mut server = server.started();
    let missing = reason(&server, 0);
    let why = format!("the certificate {} cannot be read: No such file", folder.join("cert.pem").display());
    assert_eq!(missing["state"], "failed");
    assert!(missing["reason"].as_str().unwrap().contains(&why), "{missing}");
    let other = server.address("api");
    assert_eq!(http::request(other, "GET", "/healthz", &[], b"").status, 200);
    // An address that was of no use before hinders no reload.
    server.ok(&["reload"]);

    // Served once it is mended, without a word.
    renew(&folder, LONG);
    let trusted = certificate(&server);
    server.until("it is served", |server| (reason(server, 0)["state"] == "ready").then_some(()));
    assert!(proven_by(server.address("hooks"), &trusted));

    // Whoever may read the key, an expired certificate and a file that is none.
    for (spoil, words) in [
        (spoil_mode as fn(&Path), "can be read by other users (mode 644); chmod 600"),
        (spoil_date, "expired at "),
        (spoil_text, "holds no certificate; expected PEM"),
        (spoil_key, "has a passphrase, which nobody is there to type"),
    ] {
        server.stop();
        renew(&folder, LONG);
        spoil(&folder);
        server.start();
        let failed = reason(&server, 0);
        assert_eq!(failed["state"], "failed", "{words}");
        assert!(failed["reason"].as_str().unwrap().contains(words), "{failed}");
        assert!(server.fails(1, &["check"]).contains(words));
    }
}

fn spoil_mode(folder: &Path) {
    fs::set_permissions(folder.join("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
}

fn spoil_date(folder: &Path) {
    let request = openssl(folder, &["req", "-new", "-key", "key.pem", "-subj", "/CN=test", "-out", "csr.pem"]);
    assert!(request.status.success(), "{}", text(&request));
    fs::write(folder.join("kind"), "basicConstraints=CA:FALSE\n").unwrap();
    let sign = ["x509", "-req", "-in", "csr.pem", "-signkey", "key.pem", "-days", "-1", "-extfile", "kind"];
    let signed = openssl(folder, &[&sign[..], &["-out", "cert.pem"]].concat());
    assert!(signed.status.success(), "{}", text(&signed));
}

fn spoil_text(folder: &Path) {
    fs::write(folder.join("cert.pem"), "no certificate").unwrap();
}

fn spoil_key(folder: &Path) {
    let locked = openssl(folder, &["pkey", "-in", "key.pem", "-aes256", "-passout", "pass:word", "-out", "locked"]);
    assert!(locked.status.success(), "{}", text(&locked));
    fs::rename(folder.join("locked"), folder.join("key.pem")).unwrap();
    fs::set_permissions(folder.join("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn links_of_a_tool_that_renews_are_followed() {
    let server = Server::new(CONFIG);
    let (live, archive) = (server.path().join("tls"), server.path().join("archive"));
    let lay = |number: u32| {
        renew(&archive, LONG);
        for name in ["cert", "key"] {
            let target = archive.join(format!("{name}{number}.pem"));
            fs::rename(archive.join(format!("{name}.pem")), &target).unwrap();
            symlink(&target, live.join("new")).unwrap();
            fs::rename(live.join("new"), live.join(format!("{name}.pem"))).unwrap();
        }
    };
    fs::create_dir(&live).unwrap();
    lay(1);
    let server = server.started();
    let at = server.address("hooks");
    assert!(proven_by(at, &certificate(&server)));
    lay(2);
    let second = certificate(&server);
    server.until("the new one is seen", |_| proven_by(at, &second).then_some(()));

    // In a folder where anybody could have put the link it is not followed.
    fs::set_permissions(&live, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(server.fails(1, &["reload"]).contains("is a symbolic link"));
    assert!(proven_by(at, &second));
}

#[test]
fn no_request_is_lost_while_certificates_are_exchanged() {
    let server = server().started();
    let at = server.address("hooks");
    let url = format!("https://{at}/healthz");
    let mut load = Command::new("wrk");
    load.args(["-t1", "-c16", "-d8s", "--timeout", "30s", &url]);
    let load = load.stdout(Stdio::piped()).spawn().unwrap();
    let folder = server.path().join("tls");
    for _ in 0..15 {
        let before = fs::read(folder.join("cert.pem")).unwrap();
        renew(&folder, LONG);
        server.ok(&["reload"]);
        // Of fresh connections each is proven by the old one or the new one.
        fs::write(server.path().join("both.pem"), [before, fs::read(folder.join("cert.pem")).unwrap()].concat())
            .unwrap();
        let both = server.path().join("both.pem");
        for _ in 0..3 {
            let asked = Command::new("curl")
                .args(["-sS", "--max-time", "30", "--cacert"])
                .arg(&both)
                .arg(&url)
                .output()
                .unwrap();
            assert_eq!(text(&asked), "ok");
        }
    }
    let report = text(&load.wait_with_output().unwrap());
    assert!(report.contains("Requests/sec"), "{report}");
    assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}");
}

#[test]
fn an_entry_becomes_https_and_what_expires_is_told() {
    let server = Server::new(&CONFIG.replace(r#"tls: (cert: "@DIR@/tls/cert.pem", key: "@DIR@/tls/key.pem")"#, ""));
    let server = server.started();
    assert_eq!(http::request(server.address("hooks"), "GET", "/healthz", &[], b"").status, 200);
    renew(&server.path().join("tls"), &["-days", "1"]);
    server.write_config(CONFIG);
    let checked = server.cli(&["check"]);
    assert!(checked.status.success(), "{}", text(&checked));
    assert!(!text(&checked).contains("expires at"), "a young certificate that lives for a day: {}", text(&checked));
    server.ok(&["reload"]);
    let trusted = certificate(&server);
    server.until("it is HTTPS", |server| {
        let listener = reason(server, 0);
        (listener["state"] == "ready" && proven_by(server.address("hooks"), &trusted)).then_some(())
    });
}

/// A certificate from `from` until `until`, in seconds from now, in place of the one before.
fn renew_for(folder: &Path, from: i64, until: i64) {
    renew(folder, LONG);
    fs::write(folder.join("ca.cnf"), CA).unwrap();
    fs::write(folder.join("index"), "").unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let at = |seconds: i64| {
        let date = format!("@{}", i64::try_from(now).unwrap() + seconds);
        let said = Command::new("date").args(["-u", "+%Y%m%d%H%M%SZ", "-d", &date]).output().unwrap();
        String::from_utf8(said.stdout).unwrap().trim().to_owned()
    };
    let request = ["req", "-new", "-key", "key.pem", "-subj", "/CN=test", "-out", "csr.pem"];
    let made = openssl(folder, &request);
    assert!(made.status.success(), "{}", text(&made));
    let (from, until) = (at(from), at(until));
    let dates = ["-startdate", &from, "-enddate", &until];
    let fixed = ["ca", "-batch", "-selfsign", "-config", "ca.cnf", "-keyfile", "key.pem", "-in", "csr.pem"];
    let made = openssl(folder, &[&fixed[..], &["-out", "cert.new", "-notext"], &dates].concat());
    assert!(made.status.success(), "{}", text(&made));
    fs::rename(folder.join("cert.new"), folder.join("cert.pem")).unwrap();
}

const CA: &str = "[ca]\ndefault_ca = own\n[own]\ndatabase = index\nnew_certs_dir = .\nrand_serial = yes\n\
    default_md = sha256\npolicy = any\nx509_extensions = kind\n[any]\ncommonName = supplied\n\
    [kind]\nbasicConstraints = critical,CA:FALSE\nsubjectAltName = IP:127.0.0.1\n";

/// Nothing is renewed, changed or asked: the clock alone says it.
#[test]
fn the_end_of_a_certificate_is_told_in_time_and_when_it_has_come() {
    let server = server();
    // It lives for 150 s, and should be renewed when 30 are left.
    renew_for(&server.path().join("tls"), -115, 35);
    let server = server.started();
    let cause = |name: &str| {
        let event = |server: &Server| server.events().into_iter().find(|event| event["to"] == name);
        let event = server.until(name, event);
        event["cause"].as_str().unwrap().to_owned()
    };
    let due = cause("certificate_due");
    assert!(due.contains("tls/cert.pem expires at 2") && due.contains("supervisor.ron:2:"), "{due}");
    let expired = cause("certificate_expired");
    assert!(expired.contains("tls/cert.pem expired at 2"), "{expired}");
    let named = |name: &str| server.events().iter().filter(|event| event["to"] == name).count();
    assert_eq!((named("certificate_due"), named("certificate_expired")), (1, 1));
    server.until("the log has both", |s| (s.log().contains(&due) && s.log().contains(&expired)).then_some(()));
}

/// An address of this machine that is not its own loopback's: whoever comes from there is a stranger.
fn outward() -> Option<std::net::IpAddr> {
    let all = nix::ifaddrs::getifaddrs().unwrap().filter_map(|one| one.address);
    let all = all.filter_map(|address| address.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip));
    all.filter(|address| !address.is_loopback()).map(Into::into).next()
}

#[test]
fn one_address_has_its_share_of_connections_and_no_more() {
    const FROM_ONE: usize = 64;
    let Some(address) = outward() else { return println!("this machine has no address but loopback: left out") };
    let server = Server::new(&CONFIG.replacen("127.0.0.1:0", "0.0.0.0:0", 1));
    renew(&server.path().join("tls"), LONG);
    let server = server.started();
    let at = SocketAddr::new(address, server.address("hooks").port());
    let comes = || {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut hello = ClientConnection::new(anybody(), ServerName::IpAddress(address.into())).unwrap();
        hello.write_tls(&mut stream).unwrap();
        stream
    };
    // Whoever is turned away hears why, in the clear, before a word of TLS.
    let is_heard = |mut stream: &TcpStream| {
        let mut first = [0; 12];
        stream.read_exact(&mut first).is_ok() && !first.starts_with(b"HTTP/1.1 429")
    };
    // One after the other they might take longer than the first one may, who says no more.
    let mut held: Vec<TcpStream> = (0..FROM_ONE).map(|_| comes()).collect();
    let one_too_many = comes();
    assert!(held.iter().all(is_heard) && !is_heard(&one_too_many));
    // The machine itself is not held back, and whoever goes makes room.
    assert!(ask(&mut connect(SocketAddr::new([127, 0, 0, 1].into(), at.port()), &certificate(&server))));
    held.truncate(FROM_ONE - 1);
    server.until("there is room again", |_| is_heard(&comes()).then_some(()));
}

/// A client's side of TLS that gets as far as the server's first answer.
fn anybody() -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(ring::default_provider().into());
    let config = config.with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}
