//! Encrypted connections: each `sslmode` against the right certificate, one for another name, and one of an unknown authority.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use waltag::demo::servers::Redis;

use crate::support::{World, fail, redis_at, succeed, until};

/// The name that clients use; nothing resolves it, so the address is given beside it.
const NAME: &str = "db.test";
const RULES: &str =
    "{version: 1, caches: {c: {url: \"{redis}/0\", dialect: keys}}, rules: [{table: first_model, tags: [\"a:<id>\"]}]}";

/// An authority, and certificates that it signed.
struct Authority {
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Authority {
        let authority = Authority { directory: tempfile::tempdir().unwrap() };
        let mut make = authority.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2");
        succeed(make.args("-subj /CN=authority -keyout ca.key -out ca.crt".split(' ')));
        authority
    }

    fn openssl(&self, arguments: &str) -> Command {
        let mut command = Command::new("openssl");
        command.args(arguments.split(' ')).current_dir(self.directory.path()).env("RANDFILE", "rnd");
        command
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// Signs a certificate of an RSA key for `name` (`DNS:...` or `IP:...`); certificate and key.
    fn sign(&self, common: &str, name: &str) -> (PathBuf, PathBuf) {
        let path = |ending: &str| self.directory.path().join(format!("{common}.{ending}"));
        let mut request = self.openssl("req -newkey rsa:2048 -nodes");
        request.args(["-subj", &format!("/CN={common}")]);
        succeed(request.arg("-keyout").arg(path("key")).arg("-out").arg(path("csr")));
        std::fs::write(path("ext"), format!("subjectAltName={name}\nbasicConstraints=CA:FALSE\n")).unwrap();
        let mut sign = self.openssl("x509 -req -days 2 -CA ca.crt -CAkey ca.key -CAcreateserial");
        succeed(sign.arg("-extfile").arg(path("ext")).arg("-in").arg(path("csr")).arg("-out").arg(path("crt")));
        (path("crt"), path("key"))
    }
}

/// Restarts PostgreSQL with this certificate, and this authority for those of clients.
fn serve(world: &mut World, (certificate, key): &(PathBuf, PathBuf), authority: &Authority, hba: &str) {
    let data = world.postgres.data();
    for (from, to) in [(certificate, "server.crt"), (key, "server.key"), (&authority.root(), "root.crt")] {
        let to = data.join(to);
        std::fs::copy(from, &to).unwrap();
        succeed(Command::new("chown").arg("--reference").arg(&data).arg(&to));
        succeed(Command::new("chmod").arg("600").arg(&to));
    }
    std::fs::write(data.join("pg_hba.conf"), hba).unwrap();
    world.postgres.configure("ssl = on\nssl_ca_file = 'root.crt'").unwrap();
    world.postgres.stop("fast", Duration::from_secs(20)).unwrap();
    world.postgres.launch().unwrap();
}

const TRUST: &str = "local all all trust\nhost all all 127.0.0.1/32 trust\n";

fn run(world: &World, parameters: &str) -> Command {
    let mut command = world.waltag("waltag", &["run"]);
    let url = format!("postgres://waltag@{NAME}:{}/shop?hostaddr=127.0.0.1&{parameters}", world.postgres.port);
    command.env("WALTAG_DATABASE_URL", url);
    command
}

/// Starts the daemon, and says whether its two connections are encrypted.
async fn encrypted(world: &World, parameters: &str) -> Vec<bool> {
    let daemon = world.start(&mut run(world, parameters));
    daemon.wait_for("ready");
    let sql = world.sql().await;
    let query = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'waltag'";
    let rows = sql.query(query, &[]).await.unwrap();
    assert_eq!(daemon.stop(), Some(0));
    world.is_left(&sql).await;
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn every_sslmode_against_every_certificate() {
    let mut world = World::new().await;
    world.setup(RULES);
    let (ours, foreign) = (Authority::new(), Authority::new());
    let said = fail(&mut run(&world, "sslmode=require"), 78);
    assert!(said.contains("does not speak TLS") && said.contains("ssl = on"), "{said}");
    assert_eq!(encrypted(&world, "sslmode=prefer").await, [false; 3]);
    let root = format!("sslrootcert={}", ours.root().display());
    let unknown = "signed by no authority that waltag trusts: give the authority's certificate as sslrootcert";
    let (right, other) = (ours.sign("right", &format!("DNS:{NAME}")), ours.sign("other", "DNS:other.test"));
    let strange = foreign.sign("strange", &format!("DNS:{NAME}"));
    // What verify-ca and verify-full say to each.
    for (certificate, chain, name) in
        [(&right, None, None), (&other, None, Some("is not for db.test")), (&strange, Some(unknown), Some(unknown))]
    {
        serve(&mut world, certificate, &ours, TRUST);
        assert_eq!(encrypted(&world, "sslmode=disable").await, [false; 3]);
        for mode in ["prefer", "require"] {
            assert_eq!(encrypted(&world, &format!("sslmode={mode}")).await, [true; 3], "{mode}");
        }
        // A root certificate makes `require` look at the chain, as libpq does.
        for (mode, refusal) in [("require", chain), ("verify-ca", chain), ("verify-full", name)] {
            let parameters = format!("sslmode={mode}&{root}");
            match refusal {
                None => assert_eq!(encrypted(&world, &parameters).await, [true; 3], "{mode}"),
                Some(sentence) => {
                    let said = fail(&mut run(&world, &parameters), 78);
                    assert!(said.contains(sentence), "{mode}: {said}");
                }
            }
        }
    }
    // Without a root file the system decides.
    let said = fail(&mut run(&world, "sslmode=verify-full&sslrootcert=system"), 78);
    assert!(said.contains(unknown) || said.contains("install ca-certificates"), "{said}");
}

/// SCRAM is bound to the encrypted connection where that is possible, and `channel_binding=require` insists.
#[tokio::test]
async fn passwords_are_bound_to_the_connection() {
    let mut world = World::new().await;
    world.setup(RULES);
    let authority = Authority::new();
    let certificate = authority.sign("right", &format!("DNS:{NAME}"));
    let hba = "local all all trust\nhost all postgres all trust\nhost all waltag all scram-sha-256\n";
    serve(&mut world, &certificate, &authority, hba);
    let sql = world.sql().await;
    sql.batch_execute("ALTER ROLE waltag PASSWORD 'secret'").await.unwrap();
    let with_password = |world: &World, parameters: &str| {
        let mut command = run(world, parameters);
        command.env("PGPASSWORD", "secret");
        command
    };
    for parameters in ["sslmode=require&channel_binding=require", "sslmode=require", "sslmode=disable"] {
        let daemon = world.start(&mut with_password(&world, parameters));
        daemon.wait_for("ready");
        assert_eq!(daemon.stop(), Some(0), "{parameters}");
    }
    let said = fail(&mut with_password(&world, "sslmode=disable&channel_binding=require"), 78);
    assert!(said.contains("channel binding") || said.contains("channel_binding=require"), "{said}");
    let said = fail(with_password(&world, "sslmode=require").env("PGPASSWORD", "wrong"), 78);
    assert!(said.contains("password authentication failed"), "{said}");
    // A server that asks for less than SCRAM cannot be bound to.
    let hba = hba.replace("scram-sha-256", "password");
    serve(&mut world, &certificate, &authority, &hba);
    let said = fail(&mut with_password(&world, "sslmode=require&channel_binding=require"), 78);
    assert!(said.contains("channel binding") || said.contains("channel_binding=require"), "{said}");
}

/// The server lets in who shows a certificate, and nobody else.
#[tokio::test]
async fn a_client_certificate_instead_of_a_password() {
    let mut world = World::new().await;
    world.setup(RULES);
    let authority = Authority::new();
    let server = authority.sign("right", &format!("DNS:{NAME}"));
    let hba = "local all all trust\nhost all postgres all trust\nhostssl all waltag all cert\n";
    serve(&mut world, &server, &authority, hba);
    let (certificate, key) = authority.sign("waltag", "DNS:client");
    let root = authority.root();
    let show = |path: &Path| path.display().to_string();
    let full = format!("sslmode=verify-full&sslrootcert={}", show(&root));
    let said = fail(&mut run(&world, &full), 78);
    assert!(said.contains("client certificate"), "{said}");
    let said = fail(&mut run(&world, "sslmode=disable"), 78);
    assert!(said.contains("no encryption"), "{said}");
    let ours = format!("{full}&sslcert={}&sslkey={}", show(&certificate), show(&key));
    assert_eq!(encrypted(&world, &ours).await, [true; 3]);
    let said = fail(&mut run(&world, &format!("{full}&sslcert={}", show(&certificate))), 78);
    assert!(said.contains("sslcert and sslkey go together"), "{said}");
    let said = fail(&mut run(&world, &format!("{full}&sslcert={0}&sslkey={0}", show(&certificate))), 78);
    assert!(said.contains("private key"), "{said}");
}

/// A certificate that signed itself, as the PostgreSQL manual makes one, is its own root.
#[tokio::test]
async fn a_certificate_that_signed_itself() {
    let mut world = World::new().await;
    world.setup(RULES);
    let authority = Authority::new();
    let path = |ending: &str| authority.directory.path().join(format!("self.{ending}"));
    let mut make = authority.openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=db.test");
    make.args(["-addext", "subjectAltName=DNS:db.test"]);
    succeed(make.arg("-keyout").arg(path("key")).arg("-out").arg(path("crt")));
    serve(&mut world, &(path("crt"), path("key")), &authority, TRUST);
    let root = format!("sslrootcert={}", path("crt").display());
    assert_eq!(encrypted(&world, &format!("sslmode=verify-full&{root}")).await, [true; 3]);
    let url =
        format!("postgres://waltag@no.test:{}/shop?hostaddr=127.0.0.1&sslmode=verify-full&{root}", world.postgres.port);
    let said = fail(world.waltag("waltag", &["run"]).env("WALTAG_DATABASE_URL", url), 78);
    assert!(said.contains("is not for no.test"), "{said}");
}

#[tokio::test]
async fn redis_over_tls() {
    let world = World::new().await;
    world.setup(RULES);
    let (ours, foreign) = (Authority::new(), Authority::new());
    let serve = |authority: &Authority, (certificate, key): (PathBuf, PathBuf), clients: &str| {
        let port = waltag::demo::servers::free_port().unwrap().to_string();
        let show = |path: &Path| path.display().to_string();
        for path in [authority.directory.path(), &certificate, &key] {
            succeed(Command::new("chmod").arg("a+rX").arg(path));
        }
        let redis = Redis::start(&[
            "--tls-port",
            &port,
            "--tls-cert-file",
            &show(&certificate),
            "--tls-key-file",
            &show(&key),
            "--tls-ca-cert-file",
            &show(&authority.root()),
            "--tls-auth-clients",
            clients,
        ]);
        (redis.unwrap(), port)
    };
    let rules = |port: &str, options: &str| {
        world.rules(&RULES.replace("{redis}/0\"", &format!("rediss://127.0.0.1:{port}/0\"{options}")));
    };
    let cacert = format!(", cacert: {}", ours.root().display());
    let sql = world.sql().await;
    let (redis, port) = serve(&ours, ours.sign("right", "IP:127.0.0.1"), "no");
    let mut cache = redis_at(&redis.url(0)).await.unwrap();
    rules(&port, &cacert);
    let daemon = world.daemon();
    ::redis::cmd("SET").arg(&["a:1", "cached"]).exec_async(&mut cache).await.unwrap();
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    until("the tag is stale", || {
        let mut cache = cache.clone();
        async move { !::redis::cmd("EXISTS").arg("a:1").query_async::<bool>(&mut cache).await.unwrap() }
    })
    .await;
    assert_eq!(daemon.stop(), Some(0));
    world.is_left(&sql).await;
    let refused = |said: &str| {
        let out = fail(&mut world.waltag("waltag", &["run"]), 78);
        assert!(out.contains(said) && out.contains("cache `c`"), "{out}");
    };
    rules(&port, "");
    refused("signed by no authority that waltag trusts: give the authority's certificate as `cacert: FILE`");
    let (_other, port) = serve(&ours, ours.sign("other", "DNS:other.test"), "no");
    rules(&port, &cacert);
    refused("use the name that it is for");
    let (_strange, port) = serve(&foreign, foreign.sign("strange", "IP:127.0.0.1"), "no");
    rules(&port, &cacert);
    refused("signed by no authority");
    // A server that asks for a certificate.
    let (_asking, port) = serve(&ours, ours.sign("asking", "IP:127.0.0.1"), "yes");
    let (certificate, key) = ours.sign("client", "DNS:client");
    rules(&port, &format!("{cacert}, cert: {}, key: {}", certificate.display(), key.display()));
    let daemon = world.daemon();
    assert_eq!(daemon.stop(), Some(0));
    // What is wrong in the file.
    for (options, sentence) in [
        (", cert: /none", "cannot read /none"),
        (&format!(", cert: {}", certificate.display()), "`cert` and `key` go together"),
        (&format!(", cacert: {}, cert: {1}, key: {1}", ours.root().display(), certificate.display()), "cannot be used"),
    ] {
        rules(&port, options);
        let said = fail(&mut world.waltag("waltag", &["check"]), 65);
        assert!(said.contains(sentence), "{said}");
    }
    world.rules(&RULES.replace("{redis}/0", "rediss://h/0#insecure"));
    assert!(fail(&mut world.waltag("waltag", &["check"]), 65).contains("protects from nobody"));
    world.rules(&RULES.replace("dialect", &format!("cacert: {}, dialect", ours.root().display())));
    assert!(fail(&mut world.waltag("waltag", &["check"]), 65).contains("write the URL as rediss://"));
}
