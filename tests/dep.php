<?php
// What Deployer does on a host, as far as its records go: written after recipe/deploy/{release,rollback,symlink,push,
// cleanup}.php of deployer.org, not taken from there. Everything runs in a shell, as Deployer runs it by ssh.
//     php dep.php DEPLOY_PATH COMMAND [ARGUMENT]      COMMANDS, below, says which; the answer is one line of JSON

const KEEP = 10;
$path = $argv[1];
$user = getenv('DEP_USER') ?: 'ada';
$target = getenv('DEP_TARGET') ?: 'HEAD';

function run(string $command): string
{
    global $path;
    exec('cd ' . escapeshellarg($path) . " && ($command) 2>&1", $lines, $status);
    if ($status !== 0) {
        throw new Exception("$command: " . implode(' ', $lines));
    }
    return implode("\n", $lines);
}

function test(string $condition): bool
{
    return run("if $condition; then echo yes; fi") === 'yes';
}

function now(): string
{
    return (new DateTime('now', new DateTimeZone('UTC')))->format(DateTimeInterface::ISO8601);
}

function directories(): array
{
    if (!test('[ -d releases ] && [ "$(ls -A releases)" ]')) {
        return [];
    }
    return array_map(fn($name) => rtrim(trim($name), '/'), explode("\n", run('cd releases && ls -t -1 -d */')));
}

// ---- Deployer 7

function logged(): array
{
    if (!test('[ -f .dep/releases_log ]')) {
        return [];
    }
    $lines = explode("\n", run('tail -n ' . (KEEP + 5) . ' .dep/releases_log'));
    $known = array_map(fn($line) => json_decode($line, true), $lines);
    return array_values(array_filter($known, fn($meta) => !empty($meta)));
}

function listed(): array
{
    $names = array_map(fn($meta) => $meta['release_name'], logged());
    return array_values(array_reverse(array_intersect($names, directories())));
}

function live(): string
{
    return basename(run('readlink current'));
}

function is_marked(string $release, string $mark): bool
{
    return test("[ -f releases/$release/$mark ]");
}

function make_release(): string
{
    global $user, $target;
    run('mkdir -p .dep releases');
    if (test('[ -h release ]')) {
        run('rm -rf "$(readlink release)"');
        run('rm release');
    }
    $name = strval(intval(run('cat .dep/latest_release || echo 0')) + 1);
    if (test("[ -d releases/$name ]")) {
        throw new Exception("Release name \"$name\" already exists.");
    }
    run("echo $name > .dep/latest_release");
    $meta = ['created_at' => now(), 'release_name' => $name, 'user' => $user, 'target' => $target];
    run('echo ' . escapeshellarg(json_encode($meta)) . ' >> .dep/releases_log');
    fill($name);
    return $name;
}

function fill(string $name): void
{
    run("mkdir -p releases/$name");
    run("ln -nfs releases/$name release");
    run("echo $name > releases/$name/index.html; echo sha-of-$name > releases/$name/REVISION");
}

function deploy(): string
{
    $name = make_release();
    run('mv -T release current');
    return $name;
}

function candidate(): ?string
{
    $list = listed();
    $at = array_search(live(), $list, true);
    foreach ($at === false ? [] : array_slice($list, $at + 1) as $release) {
        if ($release !== live() && !is_marked($release, 'BAD_RELEASE')) {
            return $release;
        }
    }
    return null;
}

function rollback(?string $to): string
{
    global $user;
    $left = live();
    $to ??= candidate() ?? throw new Exception('No more releases you can revert to.');
    run("ln -nfs releases/$to current");
    run("echo '" . now() . ",$user' > releases/$left/BAD_RELEASE");
    return $to;
}

function releases(): array
{
    $list = listed();
    $rows = [];
    foreach (logged() as $meta) {
        $name = $meta['release_name'];
        if (DateTime::createFromFormat(DateTimeInterface::ISO8601, $meta['created_at']) === false) {
            throw new Exception("created_at: $meta[created_at]");
        }
        $states = [];
        if (in_array($name, $list, true)) {
            $states = is_marked($name, 'BAD_RELEASE') ? ['bad'] : (is_marked($name, 'DIRTY_RELEASE') ? ['dirty'] : []);
        }
        if ($name === live()) {
            $states[] = 'current';
        }
        $rows[] = [$name, $states, $meta['user'], $meta['target']];
    }
    return $rows;
}

function push(): string
{
    global $user;
    run("echo '$user' > current/DIRTY_RELEASE");
    return live();
}

function cleanup(string $keep): array
{
    $gone = array_slice(listed(), intval($keep));
    foreach ($gone as $release) {
        run("rm -rf releases/$release");
    }
    return $gone;
}

// ---- Deployer 4 to 6

function old_listed(): array
{
    $left = directories();
    $list = [];
    $lines = test('[ -f .dep/releases ]') ? explode("\n", run('tail -n ' . (KEEP * 2 + 5) . ' .dep/releases')) : [];
    foreach (array_reverse(array_map(fn($line) => str_getcsv($line), $lines)) as $fields) {
        $at = count($fields) >= 2 ? array_search($fields[1], $left, true) : false;
        if ($at !== false) {
            $list[] = $fields[1];
            unset($left[$at]);
        }
    }
    return $list;
}

function old_deploy(): string
{
    run('mkdir -p .dep releases');
    $name = strval(intval(max([0, ...old_listed()])) + 1);
    run("echo \"\$(date +%Y%m%d%H%M%S),$name\" >> .dep/releases");
    fill($name);
    run('mv -T release current');
    return $name;
}

function old_rollback(): string
{
    [$left, $to] = [...old_listed(), null, null];
    $to ?? throw new Exception('No more releases you can revert to.');
    run("ln -nfs $(pwd)/releases/$to current");
    run("rm -rf releases/$left");
    return $to;
}

// ---- what a string of PHP's is as JSON, and whether PHP can read a line

function encode(string $hex): string
{
    return json_encode(hex2bin($hex));
}

function decode(string $hex): mixed
{
    return json_decode(hex2bin($hex), true);
}

const COMMANDS = [
    'deploy', 'make_release', 'candidate', 'rollback', 'releases', 'push', 'cleanup',
    'old_listed', 'old_deploy', 'old_rollback', 'encode', 'decode',
];

try {
    in_array($argv[2], COMMANDS, true) || throw new Exception("$argv[2]: no such command");
    echo json_encode($argv[2]($argv[3] ?? null)), "\n";
} catch (Exception $error) {
    fwrite(STDERR, $error->getMessage() . "\n");
    exit(1);
}
