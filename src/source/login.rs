//! `require_auth`: by which methods the server may ask who we are (manual: "Connection Parameters"). A server that asks for the password in clear
//! text where it never did is somebody else, and must not get it. The messages are looked at as they pass, before anybody answers them.

use super::dsn::Error;

/// A method, by libpq's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The password itself.
    Password,
    /// MD5.
    Md5,
    /// GSSAPI or Kerberos.
    Gss,
    /// SSPI.
    Sspi,
    /// SCRAM-SHA-256.
    Scram,
    /// It does not ask.
    Nothing,
}

const NAMES: [(&str, Method); 6] = [
    ("password", Method::Password),
    ("md5", Method::Md5),
    ("gss", Method::Gss),
    ("sspi", Method::Sspi),
    ("scram-sha-256", Method::Scram),
    ("none", Method::Nothing),
];

impl Method {
    fn name(self) -> &'static str {
        NAMES.iter().find(|(_, method)| *method == self).map_or("", |(name, _)| name)
    }
}

/// The methods that are allowed; nothing: all are.
pub type Methods = Option<Vec<Method>>;

/// Reads the parameter: a list of methods, or of those that are not allowed, each with a `!`.
pub fn methods(text: &str) -> Result<Methods, Error> {
    let wrong = |sentence: String| Error::Tls(format!("require_auth: {sentence}"));
    let (mut allowed, mut negated) = (Vec::new(), None);
    for name in text.split(',').map(str::trim) {
        let (not, bare) = name.strip_prefix('!').map_or((false, name), |bare| (true, bare));
        if *negated.get_or_insert(not) != not {
            return Err(wrong(format!("`{name}`: methods with `!` and without cannot be mixed")));
        }
        let method = NAMES.iter().find(|(known, _)| *known == bare).map(|(_, method)| *method).ok_or_else(|| {
            let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            wrong(format!("`{bare}` is none of {}", known.join(", ")))
        })?;
        if allowed.contains(&method) {
            return Err(wrong(format!("`{name}` stands there twice")));
        }
        allowed.push(method);
    }
    if negated == Some(true) {
        allowed = NAMES.iter().map(|(_, method)| *method).filter(|method| !allowed.contains(method)).collect();
    }
    Ok(Some(allowed))
}

/// What has passed of a log-in.
pub struct Login {
    /// Nothing once there is nothing more to look for.
    methods: Methods,
    asked: Option<Method>,
    /// The beginning of a message: its letter, its length, what it asks for.
    head: Vec<u8>,
    /// Bytes of it that say nothing more.
    rest: usize,
}

impl Login {
    /// One that may go by these methods.
    pub fn new(methods: Methods) -> Login {
        Login { methods, asked: None, head: Vec::with_capacity(9), rest: 0 }
    }

    /// Looks at what the server has said; the sentence if it asks for what it must not.
    pub fn hear(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while let (Some(allowed), false) = (&self.methods, bytes.is_empty()) {
            if self.rest > 0 {
                let passed = self.rest.min(bytes.len());
                self.rest -= passed;
                bytes = bytes.get(passed..).unwrap_or_default();
                continue;
            }
            let wanted = if self.head.first() == Some(&b'R') { 9 } else { 5 };
            let (some, after) = bytes.split_at(bytes.len().min(wanted - self.head.len()));
            self.head.extend_from_slice(some);
            bytes = after;
            // Its letter says how much there is to see.
            let wanted = if self.head.first() == Some(&b'R') { 9 } else { 5 };
            if self.head.len() < wanted {
                continue;
            }
            let number = |at: usize| self.head.iter().skip(at).take(4).fold(0, |sum, byte| sum << 8 | u32::from(*byte));
            self.rest = (number(1) as usize).saturating_sub(wanted - 1);
            let method = match (wanted, number(5)) {
                (9, 0) => Some(self.asked.unwrap_or(Method::Nothing)),
                (9, 3) => Some(Method::Password),
                (9, 5) => Some(Method::Md5),
                (9, 2 | 7) => Some(Method::Gss),
                (9, 9) => Some(Method::Sspi),
                (9, 10) => Some(Method::Scram),
                _ => None,
            };
            let over = wanted == 9 && number(5) == 0;
            self.head.clear();
            if let Some(method) = method {
                if !allowed.contains(&method) {
                    let names: Vec<&str> = allowed.iter().map(|method| method.name()).collect();
                    let what = match method {
                        Method::Nothing => "does not ask who we are".to_owned(),
                        method => format!("asks by {}", method.name()),
                    };
                    return Err(format!("the server {what}, and require_auth allows only {}", names.join(", ")));
                }
                self.asked = Some(method);
            }
            if over {
                self.methods = None;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(methods("scram-sha-256,md5").unwrap(), Some(vec![Method::Scram, Method::Md5]));
        let not = methods("!password, !none").unwrap().unwrap();
        assert_eq!(not, [Method::Md5, Method::Gss, Method::Sspi, Method::Scram]);
        for wrong in ["", "scram", "!md5,none", "md5,md5"] {
            assert!(methods(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_asked_for_is_seen_however_it_arrives() {
        let asked = |code: u32, rest: &[u8]| {
            let length = 8 + rest.len() as u32;
            [&b"R"[..], &length.to_be_bytes(), &code.to_be_bytes(), rest].concat()
        };
        let notice = [&b"N"[..], &7u32.to_be_bytes(), b"abc"].concat();
        let scram =
            [notice.clone(), asked(10, b"SCRAM-SHA-256\0\0"), asked(11, b"r=x"), asked(12, b"v=y"), asked(0, b"")]
                .concat();
        for (list, said, passes) in [
            ("scram-sha-256", &scram, true),
            ("!password", &scram, true),
            ("scram-sha-256", &asked(3, b""), false),
            ("!password", &[notice, asked(3, b"")].concat(), false),
            ("md5", &asked(5, b"salt"), true),
            ("none", &asked(0, b""), true),
            ("none", &scram, false),
            ("scram-sha-256", &asked(0, b""), false),
        ] {
            for size in [1, 4, said.len()] {
                let mut login = Login::new(methods(list).unwrap());
                let heard: Result<(), String> = said.chunks(size).try_for_each(|piece| login.hear(piece));
                assert_eq!(heard.is_ok(), passes, "{list}: {heard:?}");
            }
        }
    }
}
