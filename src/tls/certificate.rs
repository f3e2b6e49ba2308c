//! What SCRAM's channel binding needs of a certificate: its hash, by the hash of its own signature (RFC 5929, section 4.1).

use sha2::{Digest, Sha256, Sha384, Sha512};

/// Object identifiers of signatures, as DER has them, by the hash to take. MD5 and SHA-1 are replaced by SHA-256.
const SHA_256: [&[u8]; 5] = [
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04", // md5WithRSAEncryption
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05", // sha1WithRSAEncryption
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", // sha256WithRSAEncryption
    b"\x2a\x86\x48\xce\x3d\x04\x01",         // ecdsa-with-SHA1
    b"\x2a\x86\x48\xce\x3d\x04\x03\x02",     // ecdsa-with-SHA256
];
const SHA_384: [&[u8]; 2] = [b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", b"\x2a\x86\x48\xce\x3d\x04\x03\x03"];
const SHA_512: [&[u8]; 2] = [b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d", b"\x2a\x86\x48\xce\x3d\x04\x03\x04"];

/// The hash of a certificate in DER; none if its signature names no single hash (Ed25519, RSA-PSS): such a connection is not
/// bound.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let signature = signature_algorithm(certificate)?;
    match signature {
        _ if SHA_256.contains(&signature) => Some(Sha256::digest(certificate).to_vec()),
        _ if SHA_384.contains(&signature) => Some(Sha384::digest(certificate).to_vec()),
        _ if SHA_512.contains(&signature) => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// `Certificate ::= SEQUENCE { tbsCertificate, SEQUENCE { algorithm OBJECT IDENTIFIER, ... }, signature }`.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (0x30, body, _) = element(certificate)? else { return None };
    let (0x30, _, rest) = element(body)? else { return None };
    let (0x30, algorithm, _) = element(rest)? else { return None };
    let (0x06, identifier, _) = element(algorithm)? else { return None };
    Some(identifier)
}

/// Tag, content, and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, mut rest) = rest.split_first()?;
    let mut length = usize::from(*first);
    if length >= 0x80 {
        let (bytes, after) = rest.split_at_checked(length & 0x7f).filter(|(bytes, _)| bytes.len() <= 4)?;
        length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = after;
    }
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_follows_the_signature() {
        let certificate = |identifier: &[u8]| {
            let sequence = |content: Vec<u8>| [vec![0x30, content.len() as u8], content].concat();
            let algorithm = sequence([vec![0x06, identifier.len() as u8], identifier.to_vec()].concat());
            sequence([sequence(vec![2, 1, 7]), algorithm, vec![3, 1, 0]].concat())
        };
        for (identifiers, length) in [(&SHA_256[..], 32), (&SHA_384[..], 48), (&SHA_512[..], 64)] {
            for identifier in identifiers {
                assert_eq!(end_point(&certificate(identifier)).map(|hash| hash.len()), Some(length));
            }
        }
        assert_eq!(end_point(&certificate(b"\x2b\x65\x70")), None, "Ed25519");
        let whole = certificate(SHA_256[2]);
        for length in 0..whole.len() {
            let _ = end_point(&whole[..length]);
        }
        assert_eq!(end_point(b"\x30\x84\xff\xff\xff\xff"), None);
    }
}
