//! How inputs are taken apart.

/// The lines of a text; bytes that are not UTF-8 are replaced. A line break within a line is written `\n`, a tab `\t`.
pub fn lines(data: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(data).split('\n').map(str::to_owned).collect()
}

/// The columns of a line; `\N` is NULL.
pub fn columns(line: &str) -> Vec<Option<&str>> {
    line.split('\t').map(|column| (column != "\\N").then_some(column)).collect()
}

/// Frames with their lengths (two bytes) before them; the last may be cut off.
pub fn framed(mut data: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let [high, low, rest @ ..] = data {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (frame, after) = rest.split_at(length);
        frames.push(frame);
        data = after;
    }
    frames
}

/// Could reading it never end? Rule files and addresses name files.
pub fn names_devices(data: &[u8]) -> bool {
    data.windows(4).any(|window| window == b"/dev" || window == b"/pro")
}

/// Everything but letters and digits as `%XX`.
pub fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}
