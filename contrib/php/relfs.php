<?php
// Where PHP asks what `current` leads to (docs/php.md): let each request see one release, the one that is current when
// it begins. To be run before each page, by `auto_prepend_file`; with `opcache.revalidate_path = 1`. PHP 8.
//
// Some facts. PHP keeps what links lead to for 120 seconds (realpath_cache_ttl), each process for itself, and asks anew
// after that, in the midst of a request, too. Without that cache (realpath_cache_size = 0), it asks with each file that
// is included through `current`. Data (file_get_contents() and its like) is always read by the path as it is given.
//
// The choice. The cache is emptied when a request is over, however that ends, and so holds for one; and the request is
// told of the root where its page was found, so that nothing that goes by that leads through `current` any more.

register_shutdown_function(static fn () => clearstatcache(true));

(static function (): void {
    $named = $_SERVER['DOCUMENT_ROOT'] ?? '';
    $found = $named === '' ? false : realpath($named);
    if ($found === false) {
        return;
    }
    $_SERVER['DOCUMENT_ROOT'] = $found;
    $script = $_SERVER['SCRIPT_FILENAME'] ?? '';
    if (str_starts_with($script, "$named/")) {
        $_SERVER['SCRIPT_FILENAME'] = $found . substr($script, strlen($named));
    }
})();
