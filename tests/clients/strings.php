<?php
// strings.php DSN: the one row of the table `kinds`, each column as PHP makes a string of what PDO reads, as a JSON object.
$at = parse_url($argv[1]);
$pdo = new PDO("pgsql:host={$at['host']};port={$at['port']};dbname=" . ltrim($at['path'], '/'), $at['user']);
$pdo->exec("SET TimeZone = 'UTC'");
$row = $pdo->query('SELECT * FROM kinds')->fetch(PDO::FETCH_ASSOC);
// PDO gives bytea as a stream.
$text = fn ($value) => is_resource($value) ? '\x' . bin2hex(stream_get_contents($value)) : (string) $value;
echo json_encode(array_map($text, $row));
