// Package reading is a reader of waltag's `version` dialect over any client of Redis: see ../reading.md.
package reading

import (
	"crypto/rand"
	"encoding/json"
	"math"
	"math/big"
)

const ttl = 86400 // seconds: the cache's `ttl: 1d` in waltag's rules

// Do sends one command; nil is an absent key. reading.md has the one of go-redis.
type Do func(args ...any) (any, error)

type record[T any] struct {
	Tags  map[string]any `json:"tags"`
	Value T              `json:"value"`
}

// Get is the record `name`, or compute() stored under `tags` for `life` seconds.
func Get[T any](do Do, name string, tags []string, compute func() (T, error), life int) (value T, err error) {
	stored, err := do("GET", "record:"+name)
	if err != nil {
		return value, err
	}
	var hit record[T]
	if text, ok := stored.(string); ok && json.Unmarshal([]byte(text), &hit) == nil {
		if same, err := current(do, hit.Tags); err != nil || same {
			return hit.Value, err
		}
	}

	before, err := versions(do, tags)
	if err != nil {
		return value, err
	}
	for tag, version := range before {
		if version == nil {
			random, err := rand.Int(rand.Reader, big.NewInt(math.MaxInt64))
			if err != nil {
				return value, err
			}
			if _, err = do("SET", tag, random.String(), "NX", "EX", ttl); err != nil {
				return value, err
			}
		}
	}
	if before, err = versions(do, tags); err != nil { // from before the computation, never from after it
		return value, err
	}
	if value, err = compute(); err != nil {
		return value, err
	}
	text, err := json.Marshal(record[T]{before, value})
	if err != nil {
		return value, err
	}
	if life > ttl {
		life = ttl
	}
	_, err = do("SET", "record:"+name, string(text), "EX", life)
	return value, err
}

func current(do Do, stored map[string]any) (bool, error) {
	tags := make([]string, 0, len(stored))
	for tag := range stored {
		tags = append(tags, tag)
	}
	now, err := versions(do, tags)
	for tag, version := range now {
		if version == nil || version != stored[tag] {
			return false, err
		}
	}
	return err == nil, err
}

func versions(do Do, tags []string) (map[string]any, error) {
	found := make(map[string]any, len(tags))
	if len(tags) == 0 {
		return found, nil
	}
	command := []any{"MGET"}
	for _, tag := range tags {
		command = append(command, tag)
	}
	reply, err := do(command...)
	if err != nil {
		return nil, err
	}
	for i, version := range reply.([]any) {
		found[tags[i]] = version
	}
	return found, nil
}
