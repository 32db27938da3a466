set :application, "sample"
set :scm, nil
set :deploy_to, ENV.fetch("D")
set :keep_releases, Integer(ENV.fetch("KEEP", 5))
set :format, :simpletext
set :local_user, "ada"
set :current_revision, "cafe1234"

# What stands for a checkout: a release with one file, which says the release's name.
after "deploy:new_release_path", :create_release do
  on release_roles(:all) do
    execute :mkdir, "-p", release_path
    execute :echo, "-n", fetch(:release_timestamp), ">", release_path.join("index.html")
  end
end

desc "Publish releases 41 and 40 by turns, N times"
task :swaps do
  1.upto(Integer(ENV.fetch("N"))) do |number|
    set_release_path(number.odd? ? "41" : "40")
    invoke! "deploy:publishing"
    Rake::Task["deploy:symlink:release"].reenable
  end
end
