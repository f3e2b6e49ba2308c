//! A reader as a tag library is one, for the demo: a record carries the versions of its tags, and is a hit only while every
//! tag key still holds that version. Key names and tag life are those of cache-dependencies.

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;

use super::story::Error;
use crate::cache::encoding::Encoding;

/// How long the library keeps a tag.
const TAG_LIFE: u64 = 86_400;

/// One reading application.
pub(super) struct Reader {
    redis: MultiplexedConnection,
    head: String,
}

impl Reader {
    pub(super) fn new(redis: MultiplexedConnection, head: &str) -> Reader {
        Reader { redis, head: head.to_owned() }
    }

    /// The Redis key of a tag.
    pub(super) fn key(&self, tag: &str) -> String {
        let mut key = self.head.clone().into_bytes();
        Encoding::Md5.write(tag.as_bytes(), &mut key);
        String::from_utf8_lossy(&key).into_owned()
    }

    /// The cached value if every tag is still as it was.
    pub(super) async fn get(&mut self, record: &str) -> Result<Option<String>, Error> {
        let stored: Option<String> = self.redis.get(record).await?;
        let Some(stored) = stored else { return Ok(None) };
        let (value, versions): (String, Vec<(String, String)>) = serde_json::from_str(&stored)?;
        for (key, version) in versions {
            let now: Option<String> = self.redis.get(key).await?;
            if now != Some(version) {
                return Ok(None);
            }
        }
        Ok(Some(value))
    }

    /// Stores a value under tags.
    pub(super) async fn set(&mut self, record: &str, value: &str, tags: &[&str]) -> Result<(), Error> {
        let mut versions = Vec::new();
        for tag in tags {
            let key = self.key(tag);
            let fresh = format!("{:032x}", rand::random::<u128>());
            let options = redis::SetOptions::default()
                .conditional_set(redis::ExistenceCheck::NX)
                .with_expiration(redis::SetExpiry::EX(TAG_LIFE));
            let _: Option<String> = self.redis.set_options(&key, &fresh, options).await?;
            versions.push((key.clone(), self.redis.get::<_, String>(&key).await?));
        }
        let stored = serde_json::to_string(&(value, versions))?;
        Ok(self.redis.set(record, stored).await?)
    }
}
