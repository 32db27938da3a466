<?php
// Where PHP resolves `current` itself: let each request see one release, and the next one whichever is current then.
// To be run before each page (auto_prepend_file); docs/php.md tells why, and what else to set.
//
// Some facts. PHP remembers for 120 seconds what links lead to (realpath_cache_ttl), each process for itself, and asks
// for `current` anew after that, in the midst of a request, too. Without that cache (realpath_cache_size = 0), it asks
// with each file that is included through `current`. Data (file_get_contents() and the like) is never read by way of it.
//
// The choice. It is emptied when a request is over, so it lasts for one; and the document root is said to be where the
// page was found, so that nothing leads through `current` any more.
register_shutdown_function(static fn() => clearstatcache(true));
$_SERVER['DOCUMENT_ROOT'] = realpath($_SERVER['DOCUMENT_ROOT']);
