//! What can be typed. Nothing is interpreted here: [`crate::settings`] does that.

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::source::replication::slot::{Feed, Mode};

/// Makes tagged cache entries in Redis stale when PostgreSQL rows change, after the commit.
#[derive(Parser, Debug)]
#[command(name = "waltag", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Settings.
    #[command(flatten)]
    pub typed: Typed,
}

/// Settings as typed; each also has the variable that its help names.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Settings (a flag outranks its variable)")]
pub struct Typed {
    /// URL or keyword string of the database (WALTAG_DATABASE_URL, else DATABASE_URL, else libpq's PG* variables)
    #[arg(long, global = true, value_name = "DSN")]
    pub database_url: Option<String>,
    /// File that holds the database URL (WALTAG_DATABASE_URL_FILE)
    #[arg(long, global = true, value_name = "FILE")]
    pub database_url_file: Option<String>,
    /// Rule file, directory or glob; may be repeated (WALTAG_RULES, separated by `:`; default /etc/waltag/rules.d)
    #[arg(long, global = true, value_name = "PATH")]
    pub rules: Vec<String>,
    /// Where changes come from: logical replication, or a table that triggers fill (WALTAG_SOURCE; default replication)
    #[arg(long, global = true, value_name = "SOURCE")]
    pub source: Option<Feed>,
    /// How often the outbox is looked at beside its notifications (WALTAG_POLL; default 1s)
    #[arg(long, global = true, value_name = "TIME")]
    pub poll: Option<String>,
    /// Do not LISTEN at the outbox, nor let its triggers NOTIFY: for poolers, and for very many writers (WALTAG_NO_LISTEN=on)
    #[arg(long, global = true)]
    pub no_listen: bool,
    /// Replication slot, and the name of waltag's sessions (WALTAG_SLOT; default waltag)
    #[arg(long, global = true, value_name = "NAME")]
    pub slot: Option<String>,
    /// Publication (WALTAG_PUBLICATION; default waltag)
    #[arg(long, global = true, value_name = "NAME")]
    pub publication: Option<String>,
    /// Memory for tags on their way to Redis (WALTAG_TAG_MEMORY; default 32MiB)
    #[arg(long, global = true, value_name = "SIZE")]
    pub tag_memory: Option<String>,
    /// Address of the admin server: /livez, /readyz, /status, /metrics; empty for none (WALTAG_LISTEN; default
    /// 127.0.0.1:9185)
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Names that the admin server is called by, beside its address and localhost, with commas between (WALTAG_LISTEN_HOSTS)
    #[arg(long, global = true, value_name = "NAMES")]
    pub listen_hosts: Option<String>,
    /// File with the token that others than this machine must bring, but for /livez and /readyz (WALTAG_LISTEN_TOKEN_FILE, WALTAG_LISTEN_TOKEN)
    #[arg(long, global = true, value_name = "FILE")]
    pub listen_token_file: Option<String>,
    /// How long `setup` and slot creation wait for locks (WALTAG_LOCK_TIMEOUT; default 2s)
    #[arg(long, global = true, value_name = "TIME")]
    pub lock_timeout: Option<String>,
    /// Replication slot that outlives the daemon, ends with its connection, or is kept on standbys, too (WALTAG_SLOT_MODE;
    /// default permanent)
    #[arg(long, global = true, value_name = "MODE")]
    pub slot_mode: Option<Mode>,
    /// More WAL than this is never kept for waltag: the slot is made anew, and everything goes stale; 0 for no bound. For `setup` of an
    /// outbox, what its table may take (WALTAG_MAX_RETAINED_WAL; default 4GiB)
    #[arg(long, global = true, value_name = "SIZE")]
    pub max_retained_wal: Option<String>,
    /// Keys that a sweep makes stale per second, at most; `off` for no bound (WALTAG_RESYNC_RATE; default off)
    #[arg(long, global = true, value_name = "NUMBER")]
    pub resync_rate: Option<String>,
    /// How often a message is sent through the log and timed; `off` for never (WALTAG_CANARY; default 10s)
    #[arg(long, global = true, value_name = "TIME")]
    pub canary: Option<String>,
    /// Bring commits of writers with synchronous_commit = off out at once: `on` or `off` (WALTAG_FLUSH_NUDGE; default off)
    #[arg(long, global = true, value_name = "SWITCH")]
    pub flush_nudge: Option<String>,
    /// Form of the log on stderr (WALTAG_LOG_FORMAT; default text; RUST_LOG sets the level)
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// What `setup` should spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Prefer {
    /// Bytes in the log.
    Wal,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the daemon
    Run {
        /// Apply `setup` first (development, containers)
        #[arg(long)]
        setup: bool,
        /// Make stale what was changed until now, and exit
        #[arg(long)]
        once: bool,
        /// Print what would go stale; nothing is consumed or written (not with --source outbox)
        #[arg(long)]
        dry_run: bool,
    },
    /// Print or apply the SQL that the rules need
    Setup {
        /// Apply it, one statement at a time
        #[arg(long)]
        apply: bool,
        /// Take everything away again
        #[arg(long)]
        remove: bool,
        /// The daemon's role; created LOGIN REPLICATION (LOGIN, for an outbox) without a password
        #[arg(long, value_name = "NAME", default_value = "waltag")]
        role: String,
        /// What to spare: with `wal`, unique indexes and column lists where they will do; each says what can fail later
        #[arg(long, value_name = "WHAT", conflicts_with = "remove")]
        prefer: Option<Prefer>,
    },
    /// Print a rule file to start from, made of the database's tables
    Init {
        /// The cache's Redis, which is looked at as `detect` does
        #[arg(long, value_name = "URL")]
        redis: Option<String>,
    },
    /// Validate the rules
    Check {
        /// Also against the database
        #[arg(long)]
        live: bool,
        /// Warnings are errors
        #[arg(long)]
        strict: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the client libraries whose formats are spoken, or one of them
    Dialects {
        /// Which
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// As JSON
        #[arg(long, conflicts_with = "markdown")]
        json: bool,
        /// As the page docs/dialects.md
        #[arg(long)]
        markdown: bool,
    },
    /// Look at a live Redis, read-only, and propose the dialect and options of its caches
    Detect {
        /// Of Redis
        #[arg(value_name = "URL")]
        url: String,
    },
    /// Print a JSON Schema of rule files, for editors
    Schema,
    /// Print the completions of a shell
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
    /// Run the tests of the rule files
    Test {
        /// Cast the values in the database, to the types of its columns
        #[arg(long)]
        live: bool,
    },
    /// Show the tags and Redis commands of one change
    Explain {
        /// `table` or `schema.table`
        table: String,
        /// The old row: an object of column names and values
        #[arg(long, value_name = "JSON")]
        old: Option<String>,
        /// The new row
        #[arg(long, value_name = "JSON")]
        new: Option<String>,
    },
    /// Make tags stale by hand
    Invalidate {
        /// Only in this cache; without it in the default cache, or in all when there is none
        #[arg(long, value_name = "NAME")]
        cache: Option<String>,
        /// The tags
        #[arg(required = true, value_name = "TAG")]
        tags: Vec<String>,
    },
    /// Show how the running daemon is
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Wait until everything up to a position was made stale in all caches
    Wait {
        /// What `pg_current_wal_flush_lsn()` says after the commit; with `--source outbox` what `pg_current_xact_id()` says before it,
        /// or `pg_current_snapshot()` after it
        #[arg(value_name = "LSN")]
        lsn: String,
        /// At most this long
        #[arg(long, value_name = "TIME", default_value = "10s")]
        timeout: String,
    },
    /// Make everything stale that the rules reach
    Resync {
        /// Only in this cache
        #[arg(long, value_name = "NAME")]
        cache: Option<String>,
        /// Only what this table's rules reach
        #[arg(long, value_name = "TABLE")]
        table: Option<String>,
        /// Count the keys, and touch none
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the whole path live, with a private PostgreSQL and Redis
    Demo {
        /// Leave everything running until Ctrl-C
        #[arg(long)]
        keep: bool,
    },
}
